"""Reads a whole table: of files, or of a catalog."""

from collections.abc import Mapping

from pyspark.sql import DataFrame, SparkSession

from e5spark.errors import InputError
from e5spark.tables.sources import malformed
from e5spark.tables.spark_errors import spark_errors

# Spark's name for each format, and options that keep rows intact: quoted line breaks in CSV are
# data, and a record that cannot be parsed stops the job instead of becoming a row of nulls.
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


def read_path(
    spark: SparkSession, path: str, *, format: str, options: Mapping[str, str]
) -> DataFrame:
    """Returns a table of files.

    Args:
        spark: The session.
        path: A file, a directory or a glob, in Spark's syntax.
        format: ``parquet``, ``delta``, ``csv`` (a header, RFC 4180 quoting), ``jsonl`` (one object
            per line) or ``text`` (one row per line, in the column ``value``).
        options: Spark's reader options; they win over e5spark's.

    Raises:
        InputError: If the files do not exist, or Spark cannot read them.
    """
    name, defaults = READERS[format]
    settings = {**defaults, **options}
    with spark_errors(f"The input {path} cannot be read as {format}", otherwise=InputError):
        if malformed.is_fatal(settings):
            reader = spark.read.format(name).options(**malformed.recording(settings))
            schema = malformed.recording_schema(reader.load(path).schema, path)
            df = malformed.refused(reader.schema(schema).load(path))
        else:
            df = spark.read.format(name).options(**settings).load(path)
        _ = df.schema
    return df


def read_table(spark: SparkSession, name: str) -> DataFrame:
    """Returns a catalog table.

    Raises:
        InputError: If the catalog has no table of this name, or Spark cannot read it.
    """
    with spark_errors(f"The input table {name} cannot be read", otherwise=InputError):
        df = spark.table(name)
        _ = df.schema
    return df
