"""sha256 of files, computed once on each machine and not once in each worker."""

import contextlib
import functools
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

Identity = tuple[str, int, int, int, int]


def cache_directory() -> Path:
    """Returns e5spark's cache directory on this machine: ``$E5SPARK_CACHE`` if it is set.

    A user without a writable home directory, as in many containers, gets a directory of their own
    among the temporary files.
    """
    configured = os.environ.get("E5SPARK_CACHE")
    if configured:
        return Path(configured)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "e5spark"
    with contextlib.suppress(OSError):
        home.mkdir(parents=True, exist_ok=True)
        if os.access(home, os.W_OK):
            return home
    return _temporary_directory()


@functools.cache
def _temporary_directory() -> Path:
    """A directory that no other user can write, so that its content can be trusted."""
    shared = Path(tempfile.gettempdir()) / f"e5spark-{os.getuid()}"
    with contextlib.suppress(OSError):
        shared.mkdir(mode=0o700, exist_ok=True)
        status = shared.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid():
            shared.chmod(0o700)
            return shared
    return Path(tempfile.mkdtemp(prefix="e5spark-"))  # for this process alone


def sha256(path: Path) -> str:
    """Returns the hash of a file's content: 64 hex digits.

    Reading takes about 3 s per GB, so the hash is cached on this machine under the file's path,
    size, times and inode number: a file that differs in any of these is read again.
    """
    return _of_file(identity(path))


def identity(path: Path) -> Identity:
    """Returns a file's path, size, times and inode number: a cache key of its content."""
    path = path.resolve()
    status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def cached(key: Sequence[object], compute: Callable[[], str]) -> str:
    """Returns a hash from this machine's cache; computes and keeps it if it is not there.

    Args:
        key: What the hash depends on, as JSON holds it.
        compute: Returns the hash: 64 hex digits.
    """
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    entry = cache_directory() / "sha256" / name
    with contextlib.suppress(OSError):
        content = entry.read_text("ascii")
        if len(content) == 64:
            return content
    digest = compute()
    with contextlib.suppress(OSError):  # without a cache, the next process computes it again
        entry.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(entry, digest.encode())
    return digest


@functools.lru_cache(maxsize=256)
def _of_file(identity: Identity) -> str:
    return cached(identity, lambda: _read(identity[0]))


def _read(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file atomically: other processes see all of it or nothing."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
