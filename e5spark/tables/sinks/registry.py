"""The kinds of tables that vectors are written to: a new kind needs a module and a line here."""

from collections.abc import Callable, Mapping, Sequence

from pyspark.sql import SparkSession

from e5spark.errors import ConfigError
from e5spark.tables.sinks.delta import DeltaSink
from e5spark.tables.sinks.files import check_options, parquet_options
from e5spark.tables.sinks.parquet import ParquetSink
from e5spark.tables.sinks.paths import check_path
from e5spark.tables.sinks.protocol import Sink

# By output.format. Columns in the input's own Delta table are not among them: see DeltaColumns.
SINKS: Mapping[str, Callable[..., Sink]] = {
    "parquet": ParquetSink,
    "delta": DeltaSink,
}


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
        ConfigError: If the format, the path or an option cannot be used.
        ConflictError: If something exists there that e5spark did not write.
        InputError: If the session cannot reach it, or does not have the format.
    """
    if format not in SINKS:
        raise ConfigError(
            f"The output format {format!r} is unknown; use one of {', '.join(SINKS)}."
        )
    check_path(path)
    check_options(options)
    options = {**parquet_options(vectors), **options}
    return SINKS[format](spark, path=path, table=table, options=options)
