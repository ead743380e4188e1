"""Rows that are written and not visible yet: Parquet files in a directory of their record."""

from pyspark.sql import DataFrame

from e5spark.tables import sink
from e5spark.tables.ledger import Ledger
from e5spark.tables.target import Target


def stage(df: DataFrame, target: Target, ledger: Ledger, name: str) -> tuple[tuple[str, ...], int]:
    """Writes rows to the staging directory of a record, by a Spark job of its own.

    Returns:
        The files, from the table's root, and how many rows they really hold: some stores and
        committers let files of failed attempts lie.
    """
    path = f"{target.location}/{ledger.staging(name)}"
    sink.write_path(df, path, format="parquet", options=target.options)
    files = ledger.staged(name)
    paths = [f"{target.location}/{file}" for file in files]
    return files, df.sparkSession.read.schema(df.schema).parquet(*paths).count()
