"""Small files in a directory of this machine, or of one that it mounts."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from e5spark.errors import InputError, TransientError
from e5spark.names import redacted
from e5spark.tables.spark_errors import disk_full
from e5spark.tables.storage.paths import bare, hidden, relative, vanished, visible

_FULL = {errno.ENOSPC, errno.EDQUOT}
# Starting the same command again does not help.
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
        self.root = bare(root)
        self._directory = directory

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
                place = self._path(directory) if directory else self._directory
                return visible(os.listdir(place))
            except FileNotFoundError:
                return []

    def rename(self, source: str, target: str) -> None:
        before, after = self._path(source), self._path(target)
        with os_errors(self.root):
            after.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.replace(before, after)
            except FileNotFoundError as error:
                if not after.is_file():
                    raise vanished(self.root, source, target) from error
            _sync(after.parent)

    def delete(self, name: str) -> None:
        path = self._path(name)
        with os_errors(self.root):
            try:
                path.unlink()
            except FileNotFoundError:
                return
            except (IsADirectoryError, PermissionError):  # what Linux and macOS say of a directory
                if not path.is_dir():
                    raise
                shutil.rmtree(path)

    def _path(self, name: str) -> Path:
        return self._directory / relative(name)

    @contextmanager
    def _written(self, name: str, data: bytes) -> Iterator[Path]:
        """A temporary file beside the named one, on the disk and not only in memory."""
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
    """Writes a directory to the disk: only then does a new name in it survive a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def os_errors(root: str) -> Iterator[None]:
    """Raises what the operating system raises as e5spark's errors.

    Args:
        root: What the message calls the place.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise disk_full(f"{root} cannot be written") from error
        if error.errno in _REFUSED:
            raise InputError(
                f"{redacted(root)} cannot be used: {error}. Give another path, or the right to "
                "write there."
            ) from error
        raise TransientError(
            f"{redacted(root)} failed: {error}. Start the same command again."
        ) from error
