"""Reads a whole table: of files, or of a catalog."""

from collections.abc import Mapping

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, DataFrameReader, SparkSession

from e5spark.errors import ConfigError, InputError
from e5spark.tables.sources import malformed
from e5spark.tables.spark_errors import reason, spark_errors

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
    spark: SparkSession, path: str, *, format: str, schema: str = "", options: Mapping[str, str]
) -> DataFrame:
    """Returns a table of files.

    Args:
        spark: The session.
        path: A file, a directory or a glob, in Spark's syntax.
        format: ``parquet``, ``delta``, ``csv`` (a header, RFC 4180 quoting), ``jsonl`` (one object
            per line) or ``text`` (one row per line, in the column ``value``).
        schema: The columns and their types, as in SQL; by default Spark infers them.
        options: Spark's reader options; they win over e5spark's.

    Raises:
        ConfigError: If the schema cannot be parsed.
        InputError: If the files do not exist, or Spark cannot read them.
    """
    name, defaults = READERS[format]
    settings = {**defaults, **options}
    _check_schema(spark, schema)
    with spark_errors(f"The input {path} cannot be read as {format}", otherwise=InputError):
        if malformed.is_fatal(settings):
            reader = _reader(spark, name, schema, malformed.recording(settings))
            recorded = malformed.recording_schema(reader.load(path).schema, path)
            df = malformed.refused(reader.schema(recorded).load(path))
        else:
            df = _reader(spark, name, schema, settings).load(path)
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


def _check_schema(spark: SparkSession, schema: str) -> None:
    if schema:
        try:
            spark.createDataFrame([], schema)
        except PySparkException as error:
            raise ConfigError(
                "input.schema is not a list of columns and types, such as "
                f"'id BIGINT, body STRING': {reason(error)}"
            ) from error


def _reader(
    spark: SparkSession, name: str, schema: str, options: Mapping[str, str]
) -> DataFrameReader:
    reader = spark.read.format(name).options(**options)
    return reader.schema(schema) if schema else reader
