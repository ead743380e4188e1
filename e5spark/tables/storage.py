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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from py4j.protocol import Py4JJavaError, Py4JNetworkError
from pyspark.errors import PySparkAttributeError
from pyspark.sql import SparkSession

from e5spark.errors import E5SparkError, InputError, OptionError, TransientError
from e5spark.tables.source import condition, reason

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_FILE = re.compile(r"file:(?://[^/]*)?(?=/)")
# A file appears at the end of its write, whole. A rename would copy, and leave a gap.
_OBJECT_STORES = {"s3", "s3a", "gs"}
_CONDITIONAL = "fs.option.create.conditional.overwrite"
_MISSING = "java.io.FileNotFoundException"
_EXISTS = "org.apache.hadoop.fs.FileAlreadyExistsException"
_TAKEN = {
    _EXISTS,
    "org.apache.hadoop.fs.s3a.RemoteFileChangedException",  # If-None-Match did not hold
}
_DENIED = {
    _EXISTS,
    "org.apache.hadoop.security.AccessControlException",
    "org.apache.hadoop.fs.ParentNotDirectoryException",
    "org.apache.hadoop.fs.s3a.UnknownStoreException",
    "java.nio.file.AccessDeniedException",
}


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
        """Moves a file onto its target; done already if only the target is there."""

    def delete(self, name: str) -> None:
        """Removes a file, or a directory with all that is in it; done already if there is none."""


def storage(spark: SparkSession, path: str) -> Storage:
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
    with _hadoop_errors(path, always=InputError):
        # The one place that reaches into the JVM: Spark itself has no atomic write.
        conf = spark._jsparkSession.sessionState().newHadoopConf()
        files = HadoopStorage(spark.sparkContext._gateway, conf, path)
    return LocalStorage(path, files.directory) if files.scheme == "file" else files


class LocalStorage:
    """A directory of this machine, or of one that it mounts."""

    def __init__(self, root: str, directory: Path) -> None:
        self.root = _bare(root)
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
                return _visible(os.listdir(place))
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
                    raise _vanished(self.root, source, target) from error
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
        return self._directory / _relative(name)

    @contextmanager
    def _written(self, name: str, data: bytes) -> Iterator[Path]:
        """A temporary file beside the named one, on the disk and not only in memory."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / _temporary(path.name)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


class HadoopStorage:
    """A directory of any file system that the session's Hadoop knows."""

    def __init__(self, gateway: Any, conf: Any, root: str) -> None:  # noqa: ANN401
        self.root = _bare(root)
        self._gateway = gateway
        self._hadoop = gateway.jvm.org.apache.hadoop.fs
        path = self._hadoop.Path(self.root)
        self._files = path.getFileSystem(conf)
        uri = self._files.makeQualified(path).toUri()
        self.scheme = str(uri.getScheme())
        self.directory = Path(uri.getPath())
        # FileSystem's own rename does not replace, and does not say why it did nothing.
        renames = self.scheme not in _OBJECT_STORES
        self._context: Any = self._hadoop.FileContext.getFileContext(uri, conf) if renames else None

    def read(self, name: str) -> bytes | None:
        with _hadoop_errors(self.root):
            try:
                stream = self._files.open(self._path(name))
            except Py4JJavaError as error:
                if _java_class(error) == _MISSING:
                    return None
                raise
            try:
                return bytes(stream.readAllBytes())
            finally:
                stream.close()

    def put(self, name: str, data: bytes) -> None:
        with _hadoop_errors(self.root):
            if self._context is None:
                _write(self._files.create(self._path(name), True), data)
            else:
                self._write_and_rename(name, data, "OVERWRITE")

    def create(self, name: str, data: bytes) -> bool:
        with _hadoop_errors(self.root):
            try:
                if self._context is None:
                    _write(self._exclusive(self._path(name)), data)
                else:
                    self._write_and_rename(name, data, "NONE")
            except Py4JJavaError as error:
                if _java_class(error) in _TAKEN:
                    return False
                raise
            return True

    def list(self, directory: str) -> list[str]:
        with _hadoop_errors(self.root):
            try:
                place = self._path(directory) if directory else self._hadoop.Path(self.root)
                # With a filter the array is of FileStatus, not of the file system's own kind of it.
                found = self._files.listStatus(place, self._hadoop.GlobFilter("*"))
            except Py4JJavaError as error:
                if _java_class(error) == _MISSING:
                    return []
                raise
            # All of them in one answer: each call costs a round trip to the JVM.
            paths = self._hadoop.FileUtil.stat2Paths(found)
            lines = self._gateway.jvm.scala.runtime.ScalaRunTime.genericWrapArray(paths)
            return _visible(line.rpartition("/")[2] for line in lines.mkString("\n").splitlines())

    def rename(self, source: str, target: str) -> None:
        before, after = self._path(source), self._path(target)
        with _hadoop_errors(self.root):
            self._files.mkdirs(after.getParent())
            if self._files.exists(before):
                if self._context is None:
                    self._files.delete(after, False)
                    self._files.rename(before, after)
                else:
                    self._move(before, after, "OVERWRITE")
            if not self._files.exists(after):
                raise _vanished(self.root, source, target)

    def delete(self, name: str) -> None:
        with _hadoop_errors(self.root):
            self._files.delete(self._path(name), True)

    def _path(self, name: str) -> Any:  # noqa: ANN401
        # From one string: as a name of its own, one with a colon would be taken for a URI.
        return self._hadoop.Path(f"{self.root}/{_relative(name)}")

    def _exclusive(self, path: Any) -> Any:  # noqa: ANN401
        """A stream that cannot be opened, or fails when it is closed, if the file exists."""
        if self._files.hasPathCapability(path, _CONDITIONAL):
            return self._files.createFile(path).recursive().must(_CONDITIONAL, True).build()
        return self._files.create(path, False)

    def _write_and_rename(self, name: str, data: bytes, mode: str) -> None:
        path = self._path(name)
        temporary = self._hadoop.Path(path.getParent(), _temporary(path.getName()))
        try:
            _write(self._files.create(temporary, False), data)
            self._move(temporary, path, mode)
        finally:
            self._files.delete(temporary, False)

    def _move(self, source: Any, target: Any, mode: str) -> None:  # noqa: ANN401
        kind = getattr(self._gateway.jvm, "org.apache.hadoop.fs.Options$Rename")
        modes = self._gateway.new_array(kind, 1)
        modes[0] = getattr(kind, mode)
        self._context.rename(source, target, modes)


def _beside_server(spark: SparkSession, path: str) -> LocalStorage:
    """The storage of a Connect client, once the server has seen a file that this process wrote."""
    prefix = match[0] if (match := _FILE.match(path)) else ""
    if not prefix and _SCHEME.match(path):
        raise InputError(
            f"{_bare(path)} cannot be reached over Spark Connect, which has no file system but "
            "this machine's. Start the job with spark-submit, in a classic session."
        )
    directory = Path(path[len(prefix) :])
    existing = next(each for each in (directory, *directory.parents) if each.is_dir())
    probe = existing / _temporary("probe")
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


def _bare(root: str) -> str:
    return root.rstrip("/") or "/"


def _relative(name: str) -> str:
    if not {"", ".", ".."}.isdisjoint(name.split("/")):
        raise OptionError(f"A name in a storage is relative, without . and ..; found {name!r}.")
    return name


def _temporary(name: str) -> str:
    return f".{name}.{uuid4().hex}.tmp"


def _visible(names: Iterable[str]) -> list[str]:
    """Temporary files begin with a dot, and so do Hadoop's local checksums."""
    return sorted(name for name in names if not name.startswith("."))


def _vanished(root: str, source: str, target: str) -> TransientError:
    return TransientError(
        f"In {root}, {source} cannot be moved to {target}: neither is there. Another run may have "
        "removed it."
    )


def _sync(directory: Path) -> None:
    """A name that was just given survives a power cut only once its directory is on the disk."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(stream: Any, data: bytes) -> None:  # noqa: ANN401
    # Never closed after a failed write: an object store would publish the part that it has.
    stream.write(data)
    stream.close()


def _java_class(error: Py4JJavaError) -> str:
    return str(error.java_exception.getClass().getName())


@contextmanager
def _os_errors(root: str) -> Iterator[None]:
    try:
        yield
    except (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        raise InputError(f"{root} does not allow this: {error}. Give another path.") from error
    except OSError as error:
        raise TransientError(f"{root} failed: {error}. Start the same command again.") from error


@contextmanager
def _hadoop_errors(root: str, *, always: type[E5SparkError] | None = None) -> Iterator[None]:
    try:
        yield
    except Py4JJavaError as error:
        if always or _java_class(error) in _DENIED:
            raise (always or InputError)(f"{root} cannot be used: {reason(error)}") from error
        raise TransientError(
            f"{root} failed: {reason(error)} Start the same command again."
        ) from error
    except Py4JNetworkError as error:
        raise TransientError(f"{root} failed: the session's JVM does not answer.") from error
