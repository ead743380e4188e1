"""Small files beside a table: whole or not there, wherever Spark can write.

What each place promises of ``create`` and ``put``:

==========================  ===========================================================
local disk                  both atomic (a hard link, a rename)
HDFS, ViewFS                both atomic (a rename in the name node)
S3 through s3a              ``put`` atomic; ``create`` by If-None-Match: from Hadoop 3.4.2 on, where
                            the store knows it; otherwise it looks first and then writes
Google Cloud Storage        both atomic (an object generation)
any other                   by a rename; as atomic as its Hadoop connector makes that
==========================  ===========================================================
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from pyspark.errors import PySparkAttributeError
from pyspark.sql import SparkSession

from e5spark.errors import InputError, TransientError
from e5spark.tables.spark_errors import condition, spark_errors
from e5spark.tables.storage.hadoop import HadoopStorage
from e5spark.tables.storage.paths import bare, hidden, relative, vanished, visible

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_FILE = re.compile(r"file:(?://[^/]*)?(?=/)")


class Storage(Protocol):
    """Files under one root. Names are relative, with ``/``; those that begin with a dot are hidden.

    Every method raises InputError where the place refuses, and TransientError where it fails.
    """

    root: str

    def read(self, name: str) -> bytes | None:
        """Returns a file's content; None where there is no such file."""

    def put(self, name: str, data: bytes) -> None:
        """Writes a file, new or not; readers see the old content or the new, never a part."""

    def create(self, name: str, data: bytes) -> bool:
        """Writes a file unless there is one; of several callers one is told True."""

    def list(self, directory: str) -> list[str]:
        """Returns the names in a directory (`""`: the root), sorted; none where there is none."""

    def rename(self, source: str, target: str) -> None:
        """Moves a file to a name that is never given to another; done already if it is there."""

    def delete(self, name: str) -> None:
        """Removes a file, or a directory with all that is in it; done already if there is none."""


def open_storage(spark: SparkSession, path: str) -> Storage:
    """Returns the storage under a path, on the file system that Spark takes the path to.

    Args:
        spark: The session. Over Spark Connect only local paths work, and only those that the server
            sees as well.
        path: A directory, which need not exist.

    Raises:
        InputError: If the session does not know the path's scheme, or cannot reach it from here.
    """
    try:
        _ = spark._jvm
    except PySparkAttributeError:
        return _beside_server(spark, path)
    with spark_errors(f"{path} cannot be used", otherwise=InputError):
        # The one place that reaches into the JVM: Spark itself has no atomic write.
        conf = spark._jsparkSession.sessionState().newHadoopConf()
        files = HadoopStorage(spark.sparkContext._gateway, conf, path)
    return LocalStorage(path, files.directory) if files.scheme == "file" else files


class LocalStorage:
    """A directory of this machine, or of one that it mounts."""

    def __init__(self, root: str, directory: Path) -> None:
        self.root = bare(root)
        self._directory = directory

    def read(self, name: str) -> bytes | None:
        with _os_errors(self.root):
            try:
                return self._path(name).read_bytes()
            except FileNotFoundError:
                return None

    def put(self, name: str, data: bytes) -> None:
        with _os_errors(self.root), self._written(name, data) as temporary:
            os.replace(temporary, self._path(name))

    def create(self, name: str, data: bytes) -> bool:
        # A link never replaces, and what it links to is complete.
        with _os_errors(self.root), self._written(name, data) as temporary:
            try:
                os.link(temporary, self._path(name))
            except FileExistsError:
                return False
            return True

    def list(self, directory: str) -> list[str]:
        with _os_errors(self.root):
            try:
                place = self._path(directory) if directory else self._directory
                return visible(os.listdir(place))
            except FileNotFoundError:
                return []

    def rename(self, source: str, target: str) -> None:
        before, after = self._path(source), self._path(target)
        with _os_errors(self.root):
            after.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.replace(before, after)
            except FileNotFoundError as error:
                if not after.is_file():
                    raise vanished(self.root, source, target) from error
            _sync(after.parent)

    def delete(self, name: str) -> None:
        path = self._path(name)
        with _os_errors(self.root):
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


def _beside_server(spark: SparkSession, path: str) -> LocalStorage:
    """The storage of a Connect client, once the server has seen a file that this process wrote."""
    prefix = match[0] if (match := _FILE.match(path)) else ""
    if not prefix and _SCHEME.match(path):
        raise InputError(
            f"{bare(path)} cannot be reached over Spark Connect, which has no file system but "
            "this machine's. Start the job with spark-submit, in a classic session."
        )
    directory = Path(path[len(prefix) :])
    existing = next(each for each in (directory, *directory.parents) if each.is_dir())
    probe = existing / hidden("probe")
    with _os_errors(path):
        probe.touch(exist_ok=False)
    try:
        # Analysis alone: no job starts.
        spark.read.format("binaryFile").load(f"{prefix}{probe}").schema  # noqa: B018
    except Exception as error:
        if condition(error) != "PATH_NOT_FOUND":
            raise
        raise InputError(
            f"The Spark Connect server does not see the files that this process writes under "
            f"{path}. Use a directory that both of them mount, or start the job with spark-submit, "
            "in a classic session."
        ) from error
    finally:
        probe.unlink()
    return LocalStorage(path, directory.absolute())


def _sync(directory: Path) -> None:
    """A name that was just given survives a power cut only once its directory is on the disk."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _os_errors(root: str) -> Iterator[None]:
    try:
        yield
    except (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        raise InputError(f"{root} does not allow this: {error}. Give another path.") from error
    except OSError as error:
        raise TransientError(f"{root} failed: {error}. Start the same command again.") from error
