"""Column names and paths: quoted for SQL, and made safe to show in messages."""

import re
from collections.abc import Sequence

# The user's column names must not begin with this, in any case: e5spark adds columns that do.
RESERVED = "__e5spark"
_MAX_NAMES, _MAX_LENGTH = 10, 40
# s3a://KEY:SECRET@bucket, but neither hdfs://host:9000/a@b nor abfss://container@account.
_CREDENTIALS = re.compile(r"(?<=://)[^/@:\s]*:(?!\d{1,5}/)[^@\s]*@")
_QUERY = re.compile(r"(://[^\s?'\"]*)\?[\w-]+=[^\s'\",;)]*")


def quoted(name: str) -> str:
    """Returns the column name in backticks, so that Spark does not split it at its dots."""
    return "`" + name.replace("`", "``") + "`"


def listed(names: Sequence[str]) -> str:
    """Returns column names for a message: at most 10, quoted, at most 40 characters each.

    Spark turns the first row of a CSV file without a header into column names, and texts are never
    logged.
    """
    parts = [
        repr(name if len(name) <= _MAX_LENGTH else f"{name[: _MAX_LENGTH - 1]}…")
        for name in names[:_MAX_NAMES]
    ]
    more = len(names) - len(parts)
    return ", ".join(parts) + (f" and {more} more" if more else "")


def has_credentials(path: str) -> bool:
    """Returns whether a path has a user and a password, as in ``s3a://KEY:SECRET@bucket``."""
    return _CREDENTIALS.search(path) is not None


def redacted(path: str) -> str:
    """Returns a path, or a text that contains paths, without credentials.

    ``s3a://KEY:SECRET@bucket/x?sig=y`` becomes ``s3a://bucket/x``.
    """
    return _QUERY.sub(r"\1", _CREDENTIALS.sub("", path))
