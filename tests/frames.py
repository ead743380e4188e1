"""Arrow tables into DataFrames and out of them, on every Spark."""

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema

ITS_OWN = hasattr(DataFrame, "toArrow")  # Spark 4.0 and later do both themselves


def from_arrow(spark: SparkSession, table: pa.Table) -> DataFrame:
    """Its rows and types."""
    if ITS_OWN:
        return spark.createDataFrame(table)
    rows = [tuple(row.values()) for row in table.to_pylist()]
    return spark.createDataFrame(rows, from_arrow_schema(table.schema))


def to_arrow(df: DataFrame) -> pa.Table:
    """Its rows and types."""
    if ITS_OWN:
        return df.toArrow()
    return pa.Table.from_batches(df._collect_as_arrow(), to_arrow_schema(df.schema))
