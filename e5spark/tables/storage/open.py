"""Opens the storage for a path."""

import re
from pathlib import Path

from pyspark.errors import PySparkAttributeError
from pyspark.sql import SparkSession

from e5spark.errors import InputError
from e5spark.names import redacted
from e5spark.tables.spark_errors import condition, spark_errors
from e5spark.tables.storage.hadoop import HadoopStorage
from e5spark.tables.storage.local import LocalStorage, os_errors
from e5spark.tables.storage.paths import hidden, without_slash
from e5spark.tables.storage.protocol import Storage

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_FILE = re.compile(r"file:(?://[^/]*)?(?=/)")


def open_storage(spark: SparkSession, path: str) -> Storage:
    """Returns the storage for a path, on the file system that Spark resolves the path to.

    Args:
        spark: The session. Over Spark Connect, a path must be local and visible to the server.
        path: A directory, which need not exist.

    Raises:
        InputError: If the session does not know the path's scheme, or cannot reach the path.
    """
    try:
        _ = spark._jvm
    except PySparkAttributeError:
        return _open_over_connect(spark, path)
    with spark_errors(f"{path} cannot be used", otherwise=InputError):
        # The one place that reaches into the JVM: Spark itself has no atomic write.
        conf = spark._jsparkSession.sessionState().newHadoopConf()
        files = HadoopStorage(spark.sparkContext._gateway, conf, path)
    return LocalStorage(path, files.directory) if files.scheme == "file" else files


def _open_over_connect(spark: SparkSession, path: str) -> LocalStorage:
    """Returns the storage once the Connect server has seen a file that this process wrote."""
    prefix = match[0] if (match := _FILE.match(path)) else ""
    if not prefix and _SCHEME.match(path):
        raise InputError(
            f"{redacted(without_slash(path))} cannot be reached over Spark Connect, where e5spark "
            "can use only this machine's file system. Start the job with spark-submit, in a "
            "classic session."
        )
    directory = Path(path[len(prefix) :])
    existing = next(parent for parent in (directory, *directory.parents) if parent.is_dir())
    probe = existing / hidden("probe")
    with os_errors(path):
        probe.touch(exist_ok=False)
    try:
        # Only analysis: no job starts.
        spark.read.format("binaryFile").load(f"{prefix}{probe}").schema  # noqa: B018
    except Exception as error:
        if condition(error) != "PATH_NOT_FOUND":
            raise
        raise InputError(
            f"The Spark Connect server does not see the files that this process writes under "
            f"{redacted(path)}. Use a directory that both mount, or start the job with "
            "spark-submit, in a classic session."
        ) from error
    finally:
        probe.unlink()
    return LocalStorage(path, directory.absolute())
