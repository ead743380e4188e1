"""The rows of a DataFrame on the driver as an Arrow table."""

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql.pandas.types import to_arrow_schema

_HAS_TO_ARROW = hasattr(DataFrame, "toArrow")  # Spark 4.0 and later


def to_arrow(df: DataFrame) -> pa.Table:
    """Returns all rows, on every Spark."""
    if _HAS_TO_ARROW:
        return df.toArrow()
    batches = df._collect_as_arrow()  # type: ignore[operator]  # missing in PySpark's types
    return pa.Table.from_batches(batches, to_arrow_schema(df.schema))
