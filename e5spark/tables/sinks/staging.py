"""Staged rows, written but not visible yet: Parquet files in the directory of their record."""

from collections.abc import Sequence

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from e5spark.tables.ledger.ledger import Ledger
from e5spark.tables.ledger.records import Record
from e5spark.tables.sinks.files import write_path
from e5spark.tables.sinks.protocol import Sink


def stage(df: DataFrame, target: Sink, ledger: Ledger, name: str) -> tuple[tuple[str, ...], int]:
    """Writes rows to the staging directory of a record, in one Spark job.

    Returns:
        The files, relative to the table's directory, and how many rows they really have: some
        stores and committers leave files of failed attempts behind.
    """
    path = ledger.staging_path(name)
    write_path(df, path, format="parquet", options=target.options)
    files = ledger.staged_files(name)
    paths = ledger.paths([Record(name=name, kind="append", files=files)])
    return files, df.sparkSession.read.schema(df.schema).parquet(*paths).count()


def staged(
    spark: SparkSession, ledger: Ledger, schema: StructType, records: Sequence[Record]
) -> DataFrame:
    """Returns the rows that are staged for some records."""
    paths = ledger.paths(records)
    if not paths:
        return spark.createDataFrame([], schema)
    return spark.read.schema(schema).parquet(*paths)
