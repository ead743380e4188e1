"""The names of small files in a storage, and how they are told from temporary ones."""

from collections.abc import Iterable
from uuid import uuid4

from e5spark.errors import OptionError, TransientError


def bare(root: str) -> str:
    """Returns a root without a slash at its end."""
    return root.rstrip("/") or "/"


def relative(name: str) -> str:
    """Returns a name.

    Raises:
        OptionError: If it could lead out of the root.
    """
    if not {"", ".", ".."}.isdisjoint(name.split("/")):
        raise OptionError(f"A name in a storage is relative, without . and ..; found {name!r}.")
    return name


def hidden(name: str) -> str:
    """Returns a hidden name beside another one, which nobody else uses."""
    return f".{name}.{uuid4().hex}.tmp"


def visible(names: Iterable[str]) -> list[str]:
    """Returns the names that are not hidden, sorted.

    Temporary files begin with a dot, and so do Hadoop's local checksums.
    """
    return sorted(name for name in names if not name.startswith("."))


def vanished(root: str, source: str, target: str) -> TransientError:
    """Returns what to raise where a file that shall be moved is nowhere."""
    return TransientError(
        f"In {root}, {source} cannot be moved to {target}: neither is there. Another run may have "
        "removed it."
    )
