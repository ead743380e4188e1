"""The tables that texts are read from."""

import re
from collections.abc import Mapping
from typing import Any

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession

from e5spark.errors import InputError
from e5spark.tables import delta_session as delta
from e5spark.tables.sources import malformed

# Spark's name of each format, and the options that keep its rows whole: quoted line breaks in CSV
# are data, and a line that does not parse stops the job instead of becoming a row of nulls.
READERS: Mapping[str, tuple[str, dict[str, str]]] = {
    "parquet": ("parquet", {}),
    "delta": ("delta", {}),
    "csv": (
        "csv",
        {"header": "true", "multiLine": "true", "escape": '"', "mode": "FAILFAST"},
    ),
    "jsonl": ("json", {"mode": "FAILFAST"}),
    "text": ("text", {}),
}
# Spark's name of what went wrong, and its sentence, as they stand in the text of any error.
_NAMED = re.compile(r"\[([A-Z_]+(?:\.[A-Z_]+)*)\] .+")


def read_path(
    spark: SparkSession, path: str, *, format: str, options: Mapping[str, str]
) -> DataFrame:
    """Returns a table of files.

    Args:
        spark: The session.
        path: A file, a directory or a glob, as Spark takes it.
        format: ``parquet``, ``delta``, ``csv`` (a header, RFC 4180 quoting), ``jsonl`` (one object
            a line) or ``text`` (one row a line, in the column ``value``).
        options: Spark's reader options; they win over e5spark's.

    Raises:
        InputError: If the files are not there, or Spark cannot read them.
    """
    name, defaults = READERS[format]
    try:
        settings = {**defaults, **options}
        if malformed.is_fatal(settings):
            reader = spark.read.format(name).options(**malformed.recording(settings))
            schema = malformed.recording_schema(reader.load(path).schema)
            df = malformed.refused(reader.schema(schema).load(path))
        else:
            df = spark.read.format(name).options(**settings).load(path)
        _ = df.schema
    except Exception as error:  # py4j has errors that PySpark does not wrap
        raise InputError(f"The input {path} cannot be read as {format}: {reason(error)}") from error
    return df


def read_table(spark: SparkSession, name: str) -> DataFrame:
    """Returns a catalog table.

    Raises:
        InputError: If the catalog has none of this name, or Spark cannot read it.
    """
    try:
        df = spark.table(name)
        _ = df.schema
    except Exception as error:  # py4j has errors that PySpark does not wrap
        raise InputError(f"The input table {name} cannot be read: {reason(error)}") from error
    return df


def reason(error: Exception) -> str:
    """Returns one sentence of what Spark said, without its stack trace."""
    if condition(error) == "DATA_SOURCE_NOT_FOUND" and "delta" in str(error):
        return f"this session has no Delta. Add to spark-submit: {delta.submit_flags()}"
    java: Any = getattr(error, "java_exception", None)
    text = str(java.getMessage() if java is not None else error).strip() or type(error).__name__
    # An error that stopped a task is wrapped into others, which say only that a task was stopped.
    found = _NAMED.search(text) or _NAMED.search(str(error))
    sentence = (found[0] if found else text).splitlines()[0].partition(" SQLSTATE:")[0].rstrip()
    if found and found[1].startswith("MALFORMED_"):
        # What follows is the record itself, and texts are not logged.
        sentence = sentence.partition(":")[0]
    return sentence if sentence.endswith(".") else f"{sentence}."


def read_failure(error: Exception) -> InputError | None:
    """Returns what to raise where a task could not read its file; None for any other error."""
    if condition(error).startswith(("FAILED_READ_FILE", "MALFORMED_")):
        return InputError(f"The input cannot be read: {reason(error)}")
    return None


def condition(error: Exception) -> str:
    """Returns Spark's name of an error, such as ``PATH_NOT_FOUND``; empty if it has none."""
    if isinstance(error, PySparkException):
        # Spark 3.5 knows it as the error class.
        name = getattr(error, "getCondition", error.getErrorClass)()
        if name:
            return str(name)
    found = _NAMED.search(str(error))
    return found[1] if found else ""
