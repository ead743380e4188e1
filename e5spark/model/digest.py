"""sha256 of files, read once on each machine and not once in each worker."""

import contextlib
import functools
import hashlib
import json
import os
import stat
import tempfile
from pathlib import Path


def cache_directory() -> Path:
    """Returns where e5spark keeps what it makes once for a machine: ``$E5SPARK_CACHE`` if set.

    A user without a home that can be written, as in many containers, gets a directory of their own
    among the temporary files.
    """
    given = os.environ.get("E5SPARK_CACHE")
    if given:
        return Path(given)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "e5spark"
    with contextlib.suppress(OSError):
        home.mkdir(parents=True, exist_ok=True)
        if os.access(home, os.W_OK):
            return home
    return _among_temporary_files()


@functools.cache
def _among_temporary_files() -> Path:
    """A directory that no other user can write: what lies in it is trusted."""
    shared = Path(tempfile.gettempdir()) / f"e5spark-{os.getuid()}"
    with contextlib.suppress(OSError):
        shared.mkdir(mode=0o700, exist_ok=True)
        found = shared.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
            shared.chmod(0o700)
            return shared
    return Path(tempfile.mkdtemp(prefix="e5spark-"))  # for this process alone


def sha256(path: Path) -> str:
    """Returns the hash of a file's content: 64 hex digits.

    Reading takes about 3 s per GB, so the result is remembered for this machine, under the file's
    place, size, times and number: a file that changes in any of these is read again.
    """
    path = path.resolve()
    found = path.stat()
    identity = (str(path), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
    return _remembered(identity)


@functools.lru_cache(maxsize=256)
def _remembered(identity: tuple[str, int, int, int, int]) -> str:
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    note = cache_directory() / "sha256" / name
    with contextlib.suppress(OSError):
        known = note.read_text("ascii")
        if len(known) == 64:
            return known
    with open(identity[0], "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with contextlib.suppress(OSError):  # a machine that cannot remember reads again
        note.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(note, digest.encode())
    return digest


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file that others see whole or not at all."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
