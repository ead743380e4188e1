"""Ids and vectors as Arrow batches, and whole batches as single values of a binary column."""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from e5spark.errors import ConflictError, InputError
from e5spark.names import quoted
from e5spark.search.vectors import VectorColumn, matrix

PACKED = "batch binary"
_DIGITS = 16  # of a fingerprint, in each row of a job's output


def selected(df: DataFrame, id: T.StructField, vectors: VectorColumn) -> DataFrame:
    """Returns the columns ``id``, ``vector`` and, where the table has it, ``fingerprint``."""
    key = F.col(quoted(id.name))
    # Ids are ordered by their bytes here, whatever the collation of their column.
    key = key.cast("string") if isinstance(id.dataType, T.StringType) else key
    columns = [key.alias("id"), F.col(quoted(vectors.name)).alias("vector")]
    if vectors.fingerprints is not None:
        columns.append(F.col(quoted(vectors.fingerprints)).alias("fingerprint"))
    return df.select(*columns)


def pack(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yields each batch of rows as one row: the batch in Arrow's IPC format."""
    for batch in batches:
        if batch.num_rows:
            yield pa.RecordBatch.from_arrays([pa.array([to_bytes(batch)], pa.binary())], ["batch"])


def decoded(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yields each batch with float16 in its column ``vector`` as lists of float32."""
    for batch in batches:
        vectors = matrix(batch.column("vector"), "float16", None)
        offsets = np.linspace(0, vectors.size, batch.num_rows + 1, dtype=np.int32)
        lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(vectors.reshape(-1)))
        arrays = [lists if name == "vector" else batch.column(name) for name in batch.schema.names]
        yield pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


def to_bytes(batch: pa.RecordBatch) -> bytes:
    """Returns a batch in Arrow's IPC format."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def from_bytes(data: bytes) -> pa.RecordBatch:
    """Returns the batch that ``to_bytes`` wrote; its buffers are views of the bytes."""
    with pa.ipc.open_stream(data) as reader:
        return reader.read_next_batch()


def check_rows(batch: pa.RecordBatch, fingerprint: str | None, *, table: str) -> None:
    """Checks ids and fingerprints of rows that have vectors.

    Args:
        batch: The columns of ``selected``.
        fingerprint: The fingerprint that the rows must have; None if it is not known.
        table: What the message calls the table.

    Raises:
        ConflictError: If a row has another fingerprint, or the rows have several.
        InputError: If an id is null.
    """
    if batch.column("id").null_count:
        raise InputError(
            f"An id of the {table} is null; every vector needs an id. Filter such rows out."
        )
    if "fingerprint" not in batch.schema.names or not batch.num_rows:
        return
    stored = pc.unique(batch.column("fingerprint")).to_pylist()
    needed = stored[0] if fingerprint is None else fingerprint[:_DIGITS]
    other = next((value for value in stored if value != needed), needed)
    if other != needed:
        raise ConflictError(
            f"The {table} has vectors of fingerprint {other!r} beside {needed!r}, and vectors of "
            "different fingerprints must not be compared. Embed all texts with the same model and "
            "options, or search the rows of one fingerprint."
        )
