"""The tables that texts are read from."""

from collections.abc import Mapping
from typing import Any

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession

from e5spark.errors import InputError
from e5spark.tables import delta

# Spark's name of each format, and the options that keep its rows whole: quoted line breaks in CSV
# are data, and a line that does not parse stops the job instead of becoming a row of nulls.
_READERS: Mapping[str, tuple[str, dict[str, str]]] = {
    "parquet": ("parquet", {}),
    "delta": ("delta", {}),
    "csv": (
        "csv",
        {"header": "true", "multiLine": "true", "escape": '"', "mode": "FAILFAST"},
    ),
    "jsonl": ("json", {"mode": "FAILFAST"}),
    "text": ("text", {}),
}


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
    name, defaults = _READERS[format]
    try:
        df = spark.read.format(name).options(**{**defaults, **options}).load(path)
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
    sentence = text.splitlines()[0].partition(" SQLSTATE:")[0].rstrip()
    return sentence if sentence.endswith(".") else f"{sentence}."


def condition(error: Exception) -> str:
    """Returns Spark's name of an error, such as ``PATH_NOT_FOUND``; empty if it has none."""
    return (error.getCondition() or "") if isinstance(error, PySparkException) else ""
