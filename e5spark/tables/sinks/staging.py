"""Rows that are written and not visible yet: Parquet files in a directory of their record."""

from collections.abc import Sequence

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from e5spark.tables.ledger.ledger import Ledger, Record
from e5spark.tables.sinks.files import write_path
from e5spark.tables.sinks.protocol import Sink


def stage(df: DataFrame, target: Sink, ledger: Ledger, name: str) -> tuple[tuple[str, ...], int]:
    """Writes rows to the staging directory of a record, by a Spark job of its own.

    Returns:
        The files, from the table's root, and how many rows they really hold: some stores and
        committers let files of failed attempts lie.
    """
    path = f"{target.location}/{ledger.staging(name)}"
    write_path(df, path, format="parquet", options=target.options)
    files = ledger.staged(name)
    paths = [f"{target.location}/{file}" for file in files]
    return files, df.sparkSession.read.schema(df.schema).parquet(*paths).count()


def staged(
    spark: SparkSession, location: str, schema: StructType, records: Sequence[Record]
) -> DataFrame:
    """Returns the rows that were staged for some records of the table in a directory."""
    paths = [f"{location}/{file}" for record in records for file in record.files]
    if not paths:
        return spark.createDataFrame([], schema)
    return spark.read.schema(schema).parquet(*paths)
