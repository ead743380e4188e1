"""Names of files in a storage, and which of them are temporary."""

from collections.abc import Iterable
from uuid import uuid4

from e5spark.errors import OptionError, TransientError
from e5spark.names import redacted


def without_slash(root: str) -> str:
    """Returns a root without trailing slashes."""
    return root.rstrip("/") or "/"


def relative(name: str) -> str:
    """Returns a name unchanged.

    Raises:
        OptionError: If the name could lead out of the root.
    """
    if not {"", ".", ".."}.isdisjoint(name.split("/")):
        raise OptionError(
            f"The name {name!r} is not relative, or has an empty part, '.' or '..'; give another."
        )
    return name


def hidden(name: str) -> str:
    """Returns a unique, hidden name for a temporary file beside the named file."""
    return f".{name}.{uuid4().hex}.tmp"


def visible(names: Iterable[str]) -> list[str]:
    """Returns the names that are not hidden, sorted.

    Temporary files and Hadoop's local checksums have names that begin with a dot.
    """
    return sorted(name for name in names if not name.startswith("."))


def vanished(root: str, source: str, target: str) -> TransientError:
    """Returns the error for a move whose source and target are both missing."""
    return TransientError(
        f"In {redacted(root)}, {source} cannot be moved to {target}: neither exists. Another run "
        "may have removed them. Start the same command again."
    )
