"""The table that a run writes to, of any format."""

from collections.abc import Mapping, Sequence

from pyspark.sql import SparkSession

from e5spark.tables.sinks.files import check_options, parquet_options
from e5spark.tables.sinks.paths import check_path
from e5spark.tables.sinks.protocol import Sink
from e5spark.tables.sinks.registry import SINKS


def open_sink(
    spark: SparkSession,
    format: str,
    *,
    path: str = "",
    table: str = "",
    options: Mapping[str, str],
    vectors: Sequence[str],
) -> Sink:
    """Returns the table that a run writes to, which need not exist yet.

    Args:
        spark: The session.
        format: A key of ``SINKS``.
        path: The directory; either this or a table.
        table: The name in a catalog.
        options: Spark's writer options; they win over e5spark's.
        vectors: The names of the columns of vectors.

    Raises:
        ConfigError: If the path or an option cannot be used.
        ConflictError: If something exists there that e5spark did not write.
        InputError: If the session cannot reach it, or does not have the format.
    """
    check_path(path)
    check_options(options)
    options = {**parquet_options(vectors), **options}
    return SINKS[format]()(spark, path=path, table=table, options=options)
