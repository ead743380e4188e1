"""The registry of sinks: the kinds of tables that vectors are written to, by ``output.format``.

Importing it loads neither Spark nor a sink: whoever reads a job file needs the names alone. Columns
in the input's own Delta table are not among them; see ``DeltaColumns``.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from e5spark.tables.sinks.protocol import Sink


def _parquet() -> "Callable[..., Sink]":
    from e5spark.tables.sinks.parquet import ParquetSink

    return ParquetSink


def _delta() -> "Callable[..., Sink]":
    from e5spark.tables.sinks.delta import DeltaSink

    return DeltaSink


# Each value imports a sink and returns its class.
SINKS: "Mapping[str, Callable[[], Callable[..., Sink]]]" = {"parquet": _parquet, "delta": _delta}
