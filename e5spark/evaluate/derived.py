"""Vectors in other output types and dims, made from float32 vectors instead of by the model.

The job computes float32 vectors and stores them in an output type in the same way, so the results
are the job's own. A vector that is cut and normalised again differs from the job's by the rounding
of float32, 1e-7 in a component, because the job cuts before it normalises for the first time.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from e5spark.evaluate.embedding import VectorTable
from e5spark.model.output_type import to_output_type
from e5spark.model.spec import OutputType
from e5spark.names import quoted
from e5spark.search.vectors import matrix, vector_column

Vectors = npt.NDArray[np.float32]
_LISTS = {"float32": (pa.float32(), T.FloatType()), "int8": (pa.int8(), T.ByteType())}
_RANGES = "lowest array<float>, highest array<float>"


@dataclass(frozen=True, kw_only=True)
class Storage:
    """How vectors are stored.

    Attributes:
        output_type: The output type.
        dim: Components.
    """

    output_type: OutputType
    dim: int

    @property
    def bytes(self) -> int:
        """Bytes of one vector."""
        bits = {"float32": 32, "float16": 16, "binary": 1, "ubinary": 1}.get(self.output_type, 8)
        return -(-self.dim * bits // 8)


def derived(table: VectorTable, storage: Storage, ranges: Vectors | None) -> VectorTable:
    """Returns a table whose float32 vectors are stored in another way.

    Rows without a vector are left out.

    Args:
        table: The table.
        storage: How its vectors are stored.
        ranges: Smallest and largest value of each component, for int8 and uint8.  # (2, dim)
    """
    df = _with_vectors(table)
    names = [column.name for column in table.vectors]
    kind = _LISTS.get(storage.output_type)
    element = T.ArrayType(kind[1]) if kind else T.BinaryType()
    schema = T.StructType(
        [
            T.StructField(field.name, element if field.name in names else field.dataType)
            for field in df.schema
        ]
    )
    convert = partial(_converted, names, storage.dim, _normalizes(table))
    store = partial(_store, storage.output_type, ranges)
    result = df.mapInArrow(partial(_batches, convert, store), schema)
    for column in table.vectors:
        # Without the fingerprint, which is that of the vectors that these were made from.
        facts = {
            "model": column.facts.get("model", ""),
            "precision": column.facts.get("precision", ""),
        }
        facts |= {"output_type": storage.output_type, "dim": str(storage.dim)}
        result = result.withMetadata(
            column.name, {f"e5spark.{key}": value for key, value in facts.items()}
        )
    columns = tuple(vector_column(result, name) for name in names)
    return replace(table, df=result, vectors=columns, report={})


def ranges(tables: Sequence[VectorTable], dim: int) -> Vectors:
    """Returns the smallest and largest value of each component, over all vectors.  # (2, dim)."""
    rows = []
    for table in tables:
        names = [column.name for column in table.vectors]
        convert = partial(_converted, names, dim, _normalizes(table))
        df = _with_vectors(table).select(*(F.col(quoted(name)) for name in names))
        rows += df.mapInArrow(partial(_extremes, convert), _RANGES).collect()
    lowest = np.min([row.lowest for row in rows], axis=0)
    return np.array([lowest, np.max([row.highest for row in rows], axis=0)], dtype=np.float32)


def _with_vectors(table: VectorTable) -> DataFrame:
    """The rows that have their vectors, in the columns that a judgement needs."""
    names = [*filter(None, [table.id]), *table.judged_by, *(each.name for each in table.vectors)]
    return table.df.select(*(F.col(quoted(name)) for name in names)).dropna(
        subset=[quoted(column.name) for column in table.vectors]
    )


def _normalizes(table: VectorTable) -> bool:
    return bool(table.parts.get("recipe", {}).get("normalize", True))


def _converted(
    names: Sequence[str], dim: int, normalize: bool, batch: pa.RecordBatch
) -> dict[str, Vectors]:
    """The vectors of a batch with fewer components, by column; runs on executors."""
    result = {}
    for name in names:
        vectors = matrix(batch.column(name), "float32", None)[:, :dim]
        if normalize and dim < batch.column(name).value_lengths()[0].as_py():
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            lengths[lengths == 0] = 1
            vectors = (vectors / lengths).astype(np.float32, copy=False)
        result[name] = vectors
    return result


def _batches(
    convert: Callable[[pa.RecordBatch], dict[str, Vectors]],
    store: Callable[[Vectors], pa.Array],
    batches: Iterable[pa.RecordBatch],
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        if batch.num_rows:
            vectors = convert(batch)
            arrays = [
                store(vectors[name]) if name in vectors else batch.column(name)
                for name in batch.schema.names
            ]
            yield pa.RecordBatch.from_arrays(arrays, batch.schema.names)


def _extremes(
    convert: Callable[[pa.RecordBatch], dict[str, Vectors]], batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        if batch.num_rows:
            vectors = np.concatenate(list(convert(batch).values()))
            columns = [[vectors.min(axis=0)], [vectors.max(axis=0)]]
            arrays = [pa.array(column, pa.list_(pa.float32())) for column in columns]
            yield pa.RecordBatch.from_arrays(arrays, ["lowest", "highest"])


def _store(output_type: OutputType, ranges: Vectors | None, vectors: Vectors) -> pa.Array:
    values = np.ascontiguousarray(to_output_type(vectors, output_type, ranges))
    rows, width = values.shape
    if output_type in _LISTS:
        flat = pa.array(values.reshape(-1), _LISTS[output_type][0])
        return pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * width), flat)
    offsets = np.arange(rows + 1, dtype=np.int32) * (width * values.itemsize)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(values)]
    return pa.Array.from_buffers(pa.binary(), rows, buffers)
