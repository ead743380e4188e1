"""Where files are written to; nothing that exists and is not e5spark's is touched."""

import posixpath
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from pyspark.sql import DataFrame, SparkSession

from e5spark.errors import ConflictError, InputError
from e5spark.tables.ledger.layout import STATE_DIRECTORY
from e5spark.tables.spark_errors import condition, spark_errors

_WILDCARD = re.compile(r"[*?\[{]")


def check_path_free(spark: SparkSession, path: str) -> None:
    """Raises unless nothing lies at the path.

    Raises:
        ConflictError: If something does.
        InputError: If Spark cannot look.
    """
    with spark_errors(f"The output {path} cannot be checked", otherwise=InputError):
        try:
            # Analysis alone: it lists the path and starts no job. Spark Connect has no file system.
            # Twice, because Spark logs a trace of 80 lines for a single path that does not exist.
            spark.read.format("binaryFile").load([path, path]).schema  # noqa: B018
        except Exception as error:  # py4j has errors that PySpark does not wrap
            if condition(error) == "PATH_NOT_FOUND":
                return
            raise
    raise exists(f"The output {path}")


def check_apart(source: str, output: str) -> None:
    """Raises if one of two paths is, or lies inside, the other.

    Raises:
        InputError: If so: a run would read its own output.
    """
    if overlap(source, output):
        raise InputError(
            f"The output {output} and the input {source} are the same directory, or one lies "
            "inside the other; write somewhere else."
        )


def overlap(path: str, other: str) -> bool:
    """Returns whether one of two paths is, or lies inside, the other."""
    one, two = _parts(path), _parts(other)
    shorter = min(len(one), len(two))
    return one[:shorter] == two[:shorter]


def write_path(
    df: DataFrame, path: str, *, format: str, options: Mapping[str, str], partition: str = ""
) -> None:
    """Writes a new table of files, with a directory for each value of a column, if one is named.

    Raises:
        ConflictError: If something appeared at the path meanwhile.
        InputError: If the input turns out unreadable, the format cannot hold this table, or the
            session does not have the format.
    """
    table = path.partition(f"/{STATE_DIRECTORY}/")[0]
    with spark_errors(f"The output {table} cannot be written", output=table):
        writer = df.write.format(format).mode("error").options(**options)
        (writer.partitionBy(partition) if partition else writer).save(path)


def parquet_options(vectors: Sequence[str]) -> dict[str, str]:
    """Returns the writer options that suit vector columns of these names.

    zstd takes 8 % less than snappy; a dictionary of floats that never repeat only costs time
    (20,000 x 384 unit vectors: 0.95 s without it, 1.37 s with it).
    """
    plain = {f"parquet.enable.dictionary#{name}.list.element": "false" for name in vectors}
    return {"compression": "zstd", **plain}


def exists(what: str) -> ConflictError:
    """Returns what to raise where something exists that e5spark did not write."""
    return ConflictError(
        f"{what} exists already and is not e5spark's, which never overwrites. Give a new output, "
        "or remove this one first if it may go."
    )


def made_for_others(what: str, found: str, wanted: str) -> ConflictError:
    """Returns what to raise where a table without a commit names another fingerprint."""
    return ConflictError(
        f"{what} was made for other vectors (fingerprint {found[:12]}, this run's is "
        f"{wanted[:12]}), and no commit to it is known. Run with what it was made with; or, if it "
        "has no rows, remove it and run again; or give a new output."
    )


def _parts(path: str) -> tuple[str, ...]:
    url = urlsplit(path)
    # /data, file:/data and file:///data are one place to Spark on a machine of its own.
    scheme = {"file": "", "s3a": "s3", "s3n": "s3"}.get(url.scheme, url.scheme)
    folder = _WILDCARD.split(url.path, maxsplit=1)[0]
    if folder != url.path:
        folder = posixpath.dirname(folder)
    folder = posixpath.normpath(folder) if scheme else posixpath.abspath(folder)
    return (scheme, url.netloc, *PurePosixPath(folder).parts)
