"""A storage that cannot be changed, for whoever only looks at a table."""

from datetime import datetime
from typing import NoReturn

from e5spark.errors import E5SparkError
from e5spark.tables.storage.protocol import Storage


class ReadOnlyStorage:
    """The files of another storage; every method that would change one raises ``E5SparkError``."""

    def __init__(self, storage: Storage | None) -> None:
        """Wraps a storage.

        Args:
            storage: The files; None for a directory that does not exist yet.
        """
        self.root = "" if storage is None else storage.root
        self._storage = storage

    def read(self, name: str) -> bytes | None:
        return None if self._storage is None else self._storage.read(name)

    def list(self, directory: str) -> list[str]:
        return [] if self._storage is None else self._storage.list(directory)

    def modified(self, name: str) -> datetime | None:
        return None if self._storage is None else self._storage.modified(name)

    def put(self, name: str, data: bytes) -> None:
        self._refuse(name)

    def create(self, name: str, data: bytes) -> bool:
        self._refuse(name)

    def rename(self, source: str, target: str) -> None:
        self._refuse(source)

    def delete(self, name: str) -> None:
        self._refuse(name)

    def remove_empty(self) -> None:
        self._refuse("the directory")

    def _refuse(self, name: str) -> NoReturn:
        raise E5SparkError(
            f"{name} of a table would have been changed by a command that only looks at it; "
            "nothing was changed. This is a bug in e5spark."
        )
