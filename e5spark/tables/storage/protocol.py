"""What the ledger needs of a file system."""

from datetime import datetime
from typing import Protocol


class Storage(Protocol):
    """Files under one root. Names are relative, with ``/``; a leading dot makes a name hidden.

    Every method raises InputError if the file system refuses, and TransientError if it fails.
    """

    root: str

    def read(self, name: str) -> bytes | None:
        """Returns a file's content; None if there is no such file."""

    def put(self, name: str, data: bytes) -> None:
        """Writes or replaces a file; readers see the old content or the new, never a part."""

    def create(self, name: str, data: bytes) -> bool:
        """Writes a file unless it exists; of several callers exactly one gets True."""

    def list(self, directory: str) -> list[str]:
        """Returns the names in a directory (`""`: the root), sorted; none if it does not exist."""

    def modified(self, name: str) -> datetime | None:
        """Returns when a file was written, in UTC by the store's clock; None if there is none."""

    def rename(self, source: str, target: str) -> None:
        """Moves a file to a name that is never reused; does nothing if it is there already."""

    def delete(self, name: str) -> None:
        """Removes a file, or a directory with its content; does nothing if it does not exist."""

    def remove_empty(self) -> None:
        """Removes the root if it is a directory without any file; does nothing otherwise."""
