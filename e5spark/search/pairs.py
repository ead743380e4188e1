"""``pairs``: the pairs of rows of one table whose score is at least a threshold; each pair once.

Rows are put into blocks by a hash of their ids, and each pair of blocks is one row of a Cartesian
product. The blocks hold the same rows however often Spark makes them, so no pair is lost or
doubled.
"""

import functools
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from e5spark.errors import InputError, OptionError
from e5spark.search.packing import check_rows, from_bytes, selected, to_bytes
from e5spark.search.top_k import blocks, exact_scores, positions, ranks, rounding_error
from e5spark.search.vectors import (
    VectorColumn,
    check_dims,
    id_column,
    matrix,
    query_matrix,
    vector_column,
)

# Rows of a block on average: 12 MB at 384 dimensions, and 0.8 s of one core for a pair of them.
_BLOCK_ROWS = 8192
# One row is one Arrow batch's work: Spark 3.5 bounds a batch by its rows alone.
_PACKED = "block bigint, batch binary"


def pairs(
    df: DataFrame, *, threshold: float, id: str = "id", vector: str = "embedding"
) -> DataFrame:
    """Returns the pairs of rows whose score is at least a threshold, each pair once.

    The columns are ``id`` and ``other_id``, the lower id first, and ``score``, float, which is the
    score of ``nearest``. Rows without a vector are in no pair. All rows are compared with each
    other: 100,000 vectors are 5,000,000,000 products.

    The rows are counted when this is called, and read by an action on the result. ``df`` is read
    twice, so write vectors to a table first. A task holds two blocks of about 8,192 vectors.

    Args:
        df: Ids and vectors; ids must be unique.
        threshold: The lowest score of a pair. Because E5's scores lie between about 0.7 and 1.0,
            ``duplicates.calibrated_threshold`` takes it from random pairs.
        id: The column of ids: strings or whole numbers.
        vector: The column of vectors.

    Raises:
        ColumnError: If a column is missing or of the wrong type.
        OptionError: If the threshold is not a number from -1 to 1.
        InputError: From a task, if an id is null or not unique, or a vector has a component that
            is null or not finite.
        ConflictError: From a task, if the rows have different fingerprints.
    """
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise OptionError(f"threshold is {threshold!r}; it must be a number from -1 to 1.")
    if not -1 <= threshold <= 1:
        raise OptionError(
            f"threshold is {threshold}; it must be from -1 to 1, and scores of E5 lie between "
            "about 0.7 and 1.0."
        )
    vectors, ids = vector_column(df, vector), id_column(df, id)
    rows = selected(df, ids, vectors).where(F.col("vector").isNotNull())
    count = max(1, -(-rows.count() // _BLOCK_ROWS))
    packed = _blocks(rows, count)
    left = packed.select(F.col("block").alias("left"), F.col("batch").alias("left_batch"))
    right = packed.select(F.col("block").alias("right"), F.col("batch").alias("right_batch"))
    product = left.join(right.hint("shuffle_replicate_nl"), _scheduled(count), "inner")
    schema = T.StructType(
        [
            T.StructField("id", ids.dataType),
            T.StructField("other_id", ids.dataType),
            T.StructField("score", T.FloatType()),
        ]
    )
    return product.mapInArrow(functools.partial(_compare, vectors, threshold), schema)


def _blocks(rows: DataFrame, count: int) -> DataFrame:
    """The rows in blocks by a hash of their ids, each block a value of a binary column."""
    block = F.pmod(F.xxhash64("id"), F.lit(count)).alias("block")
    packed = rows.select(block, "*").repartition(count, "block").mapInArrow(_pack, _PACKED)
    # A shuffle, so that a block is packed once and not for each block that it is compared with.
    return packed.repartition(count, "block")


def _scheduled(count: int) -> Column:
    """The condition that takes each pair of blocks once, and as many for one block as another."""
    distance = F.pmod(F.col("right") - F.col("left"), F.lit(count))
    opposite = (distance * 2 == count) & (F.col("left") < F.col("right"))
    return (distance * 2 < count) | opposite


def _pack(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """One row for each block of a partition; runs on executors."""
    parts = [batch for batch in batches if batch.num_rows]
    if not parts:
        return
    table = pa.Table.from_batches(parts)
    numbers = table["block"].to_numpy()
    for block in np.unique(numbers):
        rows = table.filter(pa.array(numbers == block)).drop_columns(["block"]).combine_chunks()
        columns = [pa.array([block], pa.int64()), pa.array([to_bytes(rows.to_batches()[0])])]
        yield pa.RecordBatch.from_arrays(columns, ["block", "batch"])


def _compare(
    vectors: VectorColumn, threshold: float, batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """The pairs between two blocks, or within one; runs on executors."""
    for batch in batches:
        for number in range(batch.num_rows):
            values = {name: batch.column(name)[number] for name in batch.schema.names}
            same = values["left"].as_py() == values["right"].as_py()
            left = from_bytes(values["left_batch"].as_buffer())
            right = left if same else from_bytes(values["right_batch"].as_buffer())
            yield from _pairs(left, right, vectors, threshold)


def _pairs(
    left: pa.RecordBatch, right: pa.RecordBatch, vectors: VectorColumn, threshold: float
) -> Iterator[pa.RecordBatch]:
    _check(left, right, vectors)
    rows, others = (
        matrix(side.column("vector"), vectors.output_type, vectors.dim) for side in (left, right)
    )
    check_dims(rows.shape[1], others.shape[1])
    rows = query_matrix(rows, output_type=vectors.output_type, corpus=vectors.output_type)
    floor = np.float32(threshold) - np.float32(rounding_error(rows, others))
    ids = pa.concat_arrays([left.column("id"), right.column("id")])
    order = ranks(ids)
    for first, second, scores in blocks(rows, others):
        row, other = positions(scores >= floor)
        row, other = row + first.start, other + second.start
        if left is right:  # each pair is there twice, and each row with itself
            upper = order[row] < order[other]
            row, other = row[upper], other[upper]
        exact = exact_scores(rows, others, (row, other))
        above = exact >= np.float32(threshold)
        row, other, exact = row[above], other[above] + len(rows), exact[above]
        if not len(row):
            continue
        ordered = order[row] < order[other]
        low, high = np.where(ordered, row, other), np.where(ordered, other, row)
        columns = [ids.take(pa.array(low)), ids.take(pa.array(high)), pa.array(exact)]
        yield pa.RecordBatch.from_arrays(columns, ["id", "other_id", "score"])


def _check(left: pa.RecordBatch, right: pa.RecordBatch, vectors: VectorColumn) -> None:
    """Checks ids and fingerprints; rows of equal ids are in the same block."""
    check_rows(left, vectors.fingerprint, table="table")
    if left is right:
        if pc.count_distinct(left.column("id")).as_py() < left.num_rows:
            raise InputError(
                "An id is in several rows; ids must be unique. Remove the duplicates: "
                "df.dropDuplicates([...])."
            )
        return
    stored = "fingerprint" in left.schema.names
    fingerprint = left.column("fingerprint")[0].as_py() if stored else vectors.fingerprint
    check_rows(right, fingerprint, table="table")
