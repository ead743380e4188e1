"""Errors for outputs that e5spark must not touch: another owner's, or with other vectors."""

from e5spark.errors import ConflictError
from e5spark.names import redacted


def not_from_e5spark(what: str) -> ConflictError:
    """Returns the error for a path or a table that exists and that e5spark did not write."""
    return ConflictError(
        f"{redacted(what)} already exists and was not written by e5spark, which overwrites "
        "nothing. Give a new output, or remove this one first if it can be deleted."
    )


def other_vectors(what: str, stored: str, current: str) -> ConflictError:
    """Returns the error for a table with another fingerprint and without a commit."""
    return ConflictError(
        f"{redacted(what)} was created for other vectors (fingerprint {stored[:12]}, this run's is "
        f"{current[:12]}), and has no record of a commit. Run with the output's model and options; "
        "or, if it has no rows, remove it and run again; or give a new output."
    )
