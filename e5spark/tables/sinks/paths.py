"""Paths of outputs: which names are allowed, which are free, and which overlap."""

import posixpath
import re
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from pyspark.sql import SparkSession

from e5spark.errors import ConfigError, InputError
from e5spark.names import redacted
from e5spark.tables.sinks.conflicts import not_from_e5spark
from e5spark.tables.storage.open import open_storage

_WILDCARD = re.compile(r"[*?\[{]")
_PATTERN = re.compile(r"[*?\[\]{}\\]")


def check_path(path: str) -> None:
    """Checks that Spark takes an output path literally.

    Raises:
        ConfigError: If a part of it is a pattern: Spark would read other files than it writes.
    """
    match = _PATTERN.search(path)
    if match:
        raise ConfigError(
            f"The output path {redacted(path)!r} has the character {match[0]!r}, which Spark reads "
            r"as a pattern. Give a path without * ? [ ] { } and \."
        )


def check_path_free(spark: SparkSession, path: str) -> None:
    """Checks that an output path does not exist, or is an empty directory.

    Raises:
        ConflictError: If there is a file, or anything in the directory.
        InputError: If the path cannot be listed.
    """
    # Not by a read of Spark's, which Spark 4.1 logs as a failed query in a trace of 150 lines.
    try:
        is_empty = not open_storage(spark, path).list("")
    except InputError as error:
        if not isinstance(error.__cause__, NotADirectoryError):
            raise
        is_empty = False
    if not is_empty:
        raise not_from_e5spark(f"The output {path}")


def check_apart(source: str, output: str) -> None:
    """Checks that neither of two paths is, or is inside, the other.

    Raises:
        ConfigError: If a part of the output path is a pattern.
        InputError: If the paths overlap: a run would read its own output.
    """
    check_path(output)
    if overlap(source, output):
        raise InputError(
            f"The output {redacted(output)} and the input {redacted(source)} are the same "
            "directory, or one lies inside the other; give another output."
        )


def overlap(path: str, other: str) -> bool:
    """Returns whether one of two paths is, or is inside, the other."""
    first, second = _parts(path), _parts(other)
    shorter = min(len(first), len(second))
    return first[:shorter] == second[:shorter]


def _parts(path: str) -> tuple[str, ...]:
    url = urlsplit(path)
    # To Spark on one machine /data, file:/data and file:///data are the same place.
    scheme = {"file": "", "s3a": "s3", "s3n": "s3"}.get(url.scheme, url.scheme)
    folder = _WILDCARD.split(url.path, maxsplit=1)[0]
    if folder != url.path:
        folder = posixpath.dirname(folder)
    folder = posixpath.normpath(folder) if scheme else posixpath.abspath(folder)
    return (scheme, url.netloc, *PurePosixPath(folder).parts)
