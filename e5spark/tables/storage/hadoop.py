"""Small files on any file system that the session's Hadoop knows."""

from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from py4j.protocol import Py4JJavaError

from e5spark.errors import TransientError
from e5spark.tables.spark_errors import FILE_EXISTS, java_class, spark_errors
from e5spark.tables.storage.paths import hidden, relative, vanished, visible, without_slash

# A file appears, complete, when its write ends. A rename would copy it, and leave a gap.
_OBJECT_STORES = {"s3", "s3a", "gs"}
_CONDITIONAL = "fs.option.create.conditional.overwrite"
_MISSING = "java.io.FileNotFoundException"
_TAKEN = {
    FILE_EXISTS,
    "org.apache.hadoop.fs.s3a.RemoteFileChangedException",  # If-None-Match failed
}


class HadoopStorage:
    """A directory of any file system that the session's Hadoop knows."""

    def __init__(self, gateway: Any, conf: Any, root: str) -> None:  # noqa: ANN401
        self.root = without_slash(root)
        self._gateway = gateway
        self._hadoop = gateway.jvm.org.apache.hadoop.fs
        path = self._hadoop.Path(self.root)
        self._files = path.getFileSystem(conf)
        uri = self._files.makeQualified(path).toUri()
        self.scheme = str(uri.getScheme())
        self.directory = Path(uri.getPath())
        # FileSystem's own rename does not replace a file, and gives no reason when it fails.
        renames = self.scheme not in _OBJECT_STORES
        self._context: Any = self._hadoop.FileContext.getFileContext(uri, conf) if renames else None

    def read(self, name: str) -> bytes | None:
        with self._errors():
            try:
                stream = self._files.open(self._path(name))
            except Py4JJavaError as error:
                if java_class(error) == _MISSING:
                    return None
                raise
            try:
                return bytes(stream.readAllBytes())
            finally:
                stream.close()

    def put(self, name: str, data: bytes) -> None:
        with self._errors():
            if self._context is None:
                _write(self._files.create(self._path(name), True), data)
            else:
                self._write_and_rename(name, data, "OVERWRITE")

    def create(self, name: str, data: bytes) -> bool:
        with self._errors():
            try:
                if self._context is None:
                    _write(self._exclusive(self._path(name)), data)
                else:
                    self._write_and_rename(name, data, "NONE")
            except Py4JJavaError as error:
                if java_class(error) in _TAKEN:
                    return False
                raise
            return True

    def list(self, directory: str) -> list[str]:
        with self._errors():
            try:
                path = self._path(directory) if directory else self._hadoop.Path(self.root)
                # With a filter the elements are FileStatus, not the file system's own subclass.
                statuses = self._files.listStatus(path, self._hadoop.GlobFilter("*"))
            except Py4JJavaError as error:
                if java_class(error) == _MISSING:
                    return []
                raise
            # All names in one answer: each call costs a round trip to the JVM.
            paths = self._hadoop.FileUtil.stat2Paths(statuses)
            lines = self._gateway.jvm.scala.runtime.ScalaRunTime.genericWrapArray(paths)
            return visible(line.rpartition("/")[2] for line in lines.mkString("\n").splitlines())

    def modified(self, name: str) -> datetime | None:
        with self._errors():
            try:
                status = self._files.getFileStatus(self._path(name))
            except Py4JJavaError as error:
                if java_class(error) == _MISSING:
                    return None
                raise
            return datetime.fromtimestamp(status.getModificationTime() / 1000, UTC)

    def rename(self, source: str, target: str) -> None:
        source_path, target_path = self._path(source), self._path(target)
        with self._errors():
            self._files.mkdirs(target_path.getParent())
            # A file under the final name is complete and may be the only copy: another run can
            # move the source away between any two of these lines. So nothing is ever replaced.
            if self._files.exists(target_path):
                self._files.delete(source_path, False)
            elif self._files.exists(source_path):
                if self._context is None:
                    self._files.rename(source_path, target_path)
                else:
                    self._move(source_path, target_path, "NONE")
            if not self._files.exists(target_path):
                raise vanished(self.root, source, target)

    def delete(self, name: str) -> None:
        with self._errors():
            self._files.delete(self._path(name), True)

    def remove_empty(self) -> None:
        path = self._hadoop.Path(self.root)
        with self._errors():
            if self._files.exists(path) and not self._files.listStatus(path):
                self._files.delete(path, False)  # fails if a file has come in the meantime

    def _errors(self) -> AbstractContextManager[None]:
        return spark_errors(f"{self.root} cannot be used", otherwise=TransientError)

    def _path(self, name: str) -> Any:  # noqa: ANN401
        # One string: Hadoop would parse a name with a colon, passed on its own, as a URI.
        return self._hadoop.Path(f"{self.root}/{relative(name)}")

    def _exclusive(self, path: Any) -> Any:  # noqa: ANN401
        """Returns a stream that fails, when opened or when closed, if the file exists."""
        if self._files.hasPathCapability(path, _CONDITIONAL):
            return self._files.createFile(path).recursive().must(_CONDITIONAL, True).build()
        return self._files.create(path, False)

    def _write_and_rename(self, name: str, data: bytes, mode: str) -> None:
        path = self._path(name)
        temporary = self._hadoop.Path(path.getParent(), hidden(path.getName()))
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


def _write(stream: Any, data: bytes) -> None:  # noqa: ANN401
    # Not closed after a failed write: an object store would then publish a truncated file.
    stream.write(data)
    stream.close()
