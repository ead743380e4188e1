"""The range of each component of a corpus's vectors, computed on the executors."""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from e5spark.errors import InputError, OptionError
from e5spark.model.output_type import Calibration
from e5spark.model.resolve import Plan
from e5spark.names import quoted
from e5spark.spark.columns import TextColumns, result_names
from e5spark.spark.embedding import embed_plan

_RANGES = pa.schema(
    [
        ("lowest", pa.list_(pa.float32())),
        ("highest", pa.list_(pa.float32())),
        ("rows", pa.int64()),
    ]
)


def calibrate(df: DataFrame, plan: Plan, texts: TextColumns, *, sample: int) -> Calibration:
    """Returns the ranges of the float32 vectors of a sample of the table.

    Args:
        df: The whole corpus; every sampled row runs through the model.
        plan: A plan of float32 vectors.
        texts: The text columns; the vectors of several columns share their ranges.
        sample: About how many rows to use; the same rows each time for the same table.

    Raises:
        InputError: If no text of the sample has a vector.
        OptionError: If ``sample`` is less than 1.
    """
    if sample < 1:
        raise OptionError(f"sample is {sample}; it must be a positive whole number.")
    rows = df.count()
    if rows > sample:
        df = df.sample(fraction=sample / rows, seed=0)
    vectors = embed_plan(df, plan, texts)
    vector = F.explode(F.array(*map(_embedding, result_names(plan, texts)))).alias("vector")
    parts = (
        vectors.select(vector)
        .filter(F.col("vector").isNotNull())
        .mapInArrow(_partial, "lowest array<float>, highest array<float>, rows bigint")
        .collect()
    )
    if not parts:
        raise InputError("No text of the sample has a vector, so there are no ranges.")
    return Calibration(
        lowest=tuple(np.min([part.lowest for part in parts], axis=0).tolist()),
        highest=tuple(np.max([part.highest for part in parts], axis=0).tolist()),
        rows=sum(part.rows for part in parts),
        fingerprint=plan.fingerprint.digest,
    )


def _embedding(names: dict[str, str]) -> Column:
    return F.col(quoted(names["embedding"]))


def _partial(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """One row for each Arrow batch: smallest and largest value of each component."""
    for batch in batches:
        if batch.num_rows == 0:
            continue
        flat = batch.column(0).flatten().to_numpy(zero_copy_only=False)
        vectors = flat.reshape(batch.num_rows, -1)
        row = [[vectors.min(axis=0)], [vectors.max(axis=0)], [len(vectors)]]
        arrays = [pa.array(value, field.type) for value, field in zip(row, _RANGES, strict=True)]
        yield pa.RecordBatch.from_arrays(arrays, schema=_RANGES)
