"""Whether a session can write a directory: it writes there, and removes all that it has written."""

import posixpath
from uuid import uuid4

from pyspark.sql import SparkSession

from e5spark.errors import InputError
from e5spark.names import redacted
from e5spark.tables.spark_errors import spark_errors
from e5spark.tables.storage.local import LocalStorage
from e5spark.tables.storage.open import open_storage
from e5spark.tables.storage.protocol import Storage


def try_write(spark: SparkSession, path: str, *, prefix: str, tasks: int) -> None:
    """Writes a small file from the driver and one from each task, and removes them again.

    Args:
        spark: The session.
        path: A directory, which need not exist; it does not exist afterwards either.
        prefix: How the name begins of what is written for a moment; a dot hides it from readers.
        tasks: Tasks that write.

    Raises:
        InputError: If the driver or an executor cannot write there, or the driver does not see what
            executors write.
        TransientError: If the file system fails.
    """
    storage = open_storage(spark, path)
    missing = _missing(spark, storage)
    name = f"{prefix}{uuid4().hex}"
    try:
        storage.create(f"{name}/driver", b"e5spark")
        with spark_errors(f"{path} cannot be written", otherwise=InputError):
            rows = spark.range(0, tasks, 1, tasks)
            rows.write.parquet(f"{storage.root}/{name}/rows")
        files = [file for file in storage.list(f"{name}/rows") if file.startswith("part-")]
        if len(files) != tasks:
            raise InputError(
                f"The driver sees {len(files)} of {tasks} files that executors wrote below "
                f"{redacted(path)}: it is not one directory for all machines. Give a path that all "
                "of them share: a network file system, HDFS or an object store."
            )
    finally:
        storage.delete(name)
        for directory in missing:
            directory.remove_empty()


def _missing(spark: SparkSession, storage: Storage) -> list[Storage]:
    """The directories that do not exist yet, from the storage's own upwards."""
    if isinstance(storage, LocalStorage):
        paths = (storage.directory, *storage.directory.parents)
        return [LocalStorage(str(path), path) for path in paths if not path.exists()]
    missing: list[Storage] = []
    path = storage.root
    # What lies above a bucket or a host, "s3a:", is no directory.
    while (parent := posixpath.dirname(path)) != path and not parent.endswith(":"):
        if open_storage(spark, parent).modified(posixpath.basename(path)) is not None:
            break
        missing.append(open_storage(spark, path))
        path = parent
    return missing
