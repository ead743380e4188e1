"""Small files in a directory that this machine has or mounts."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from e5spark.errors import InputError, TransientError
from e5spark.names import redacted
from e5spark.tables.spark_errors import disk_full
from e5spark.tables.storage.paths import hidden, relative, vanished, visible, without_slash

_FULL = {errno.ENOSPC, errno.EDQUOT}
_KEPT = {errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST}
# Not transient: starting the same command again does not help.
_REFUSED = {
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}


class LocalStorage:
    """A directory that this process reaches through its operating system."""

    def __init__(self, root: str, directory: Path) -> None:
        self.root = without_slash(root)
        self.directory = directory

    def read(self, name: str) -> bytes | None:
        with os_errors(self.root):
            try:
                return self._path(name).read_bytes()
            except FileNotFoundError:
                return None

    def put(self, name: str, data: bytes) -> None:
        with os_errors(self.root), self._written(name, data) as temporary:
            os.replace(temporary, self._path(name))

    def create(self, name: str, data: bytes) -> bool:
        # A link never replaces, and what it links to is complete.
        with os_errors(self.root), self._written(name, data) as temporary:
            try:
                os.link(temporary, self._path(name))
            except FileExistsError:
                return False
            return True

    def list(self, directory: str) -> list[str]:
        with os_errors(self.root):
            try:
                path = self._path(directory) if directory else self.directory
                return visible(os.listdir(path))
            except FileNotFoundError:
                return []

    def modified(self, name: str) -> datetime | None:
        with os_errors(self.root):
            try:
                return datetime.fromtimestamp(self._path(name).stat().st_mtime, UTC)
            except FileNotFoundError:
                return None

    def rename(self, source: str, target: str) -> None:
        source_path, target_path = self._path(source), self._path(target)
        with os_errors(self.root):
            target_path.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.replace(source_path, target_path)
            except FileNotFoundError as error:
                if not target_path.is_file():
                    raise vanished(self.root, source, target) from error
            _sync(target_path.parent)

    def delete(self, name: str) -> None:
        path = self._path(name)
        with os_errors(self.root):
            try:
                path.unlink()
            except FileNotFoundError:
                return
            except (IsADirectoryError, PermissionError):  # Linux's and macOS's for a directory
                if not path.is_dir():
                    raise
                shutil.rmtree(path)

    def remove_empty(self) -> None:
        with os_errors(self.root):
            try:
                self.directory.rmdir()
            except OSError as error:
                if error.errno not in _KEPT:
                    raise

    def _path(self, name: str) -> Path:
        return self.directory / relative(name)

    @contextmanager
    def _written(self, name: str, data: bytes) -> Iterator[Path]:
        """Yields a temporary file with the data, beside the named file and flushed to disk."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / hidden(path.name)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _sync(directory: Path) -> None:
    """Flushes a directory to disk: only then does a new name in it survive a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def os_errors(root: str) -> Iterator[None]:
    """Translates errors of the operating system into e5spark's.

    Args:
        root: The directory, for the message.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise disk_full(f"{root} cannot be written") from error
        if error.errno in _REFUSED:
            raise InputError(
                f"{redacted(root)} cannot be used: {error}. Give another path, or grant "
                "permission to write there."
            ) from error
        raise TransientError(
            f"{redacted(root)} failed: {error}. Start the same command again."
        ) from error
