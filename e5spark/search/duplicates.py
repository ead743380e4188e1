"""``duplicates``: rows of one table in groups of near-duplicates, and the row to keep of each."""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from e5spark.errors import InputError
from e5spark.search.packing import PACKED, check_rows, from_bytes, pack, selected
from e5spark.search.pairs import pairs
from e5spark.search.top_k import ranks
from e5spark.search.vectors import id_column, matrix, query_matrix, vector_column

Numbers = npt.NDArray[np.int64]

# A pair of near-duplicates is this far on the way from the mean score of random pairs to 1.
_DISTANCE = 0.9
_SAMPLE_ROWS = 2000


def duplicates(
    df: DataFrame, *, threshold: float, id: str = "id", vector: str = "embedding"
) -> DataFrame:
    """Returns the rows that have near-duplicates, in groups.

    The columns are ``id``; ``group_id``, the lowest id of the row's group; and ``keep``, boolean,
    true for that row alone. Rows without near-duplicates are not in the result, so a table without
    its duplicates is ``df.join(result.where("NOT keep"), "id", "left_anti")``.

    Two rows are in one group if a chain of pairs connects them, each with a score of at least the
    threshold; the ends of a long chain may be less alike. One task joins the groups of all tasks:
    it holds the ids of the result, about 100 bytes each.

    Args:
        df: Ids and vectors; see ``pairs``, which is called with them.
        threshold: The lowest score of a pair; see ``calibrated_threshold``.
        id: The column of ids.
        vector: The column of vectors.

    Raises:
        ColumnError: If a column is missing or of the wrong type.
        OptionError: If the threshold is not a number from -1 to 1.
        InputError: From a task; see ``pairs``.
        ConflictError: From a task, if the rows have different fingerprints.
    """
    edges = pairs(df, threshold=threshold, id=id, vector=vector).select("id", "other_id")
    kind = id_column(df, id).dataType
    schema = T.StructType([T.StructField("id", kind), T.StructField("other_id", kind)])
    # Few edges leave a task: one for each row that it has connected.
    groups = edges.mapInArrow(_connect, schema).repartition(1).mapInArrow(_connect, schema)
    members = groups.select("id", F.col("other_id").alias("group_id"))
    return members.withColumn("keep", F.col("id") == F.col("group_id"))


def calibrated_threshold(
    df: DataFrame, *, id: str = "id", vector: str = "embedding", seed: int = 0
) -> float:
    """Returns the threshold of near-duplicates for the vectors of a table.

    Scores of unrelated texts differ between checkpoints and corpora: E5's lie around 0.7. The
    threshold is 9/10 of the way from the mean score of the pairs of 2,000 random rows to 1.
    docs/search.md says what it separates on STS Benchmark.

    Args:
        df: Ids and vectors.
        id: The column of ids.
        vector: The column of vectors.
        seed: Decides the sample.

    Raises:
        ColumnError: If a column is missing or of the wrong type.
        InputError: If fewer than two rows have vectors, or the vectors are equal or not finite.
    """
    vectors = vector_column(df, vector)
    rows = selected(df, id_column(df, id), vectors).where(F.col("vector").isNotNull())
    # The lowest hashes of the ids: the same rows however the table is partitioned.
    sample = rows.orderBy(F.xxhash64("id", F.lit(seed)), "id").limit(_SAMPLE_ROWS)
    batches = [from_bytes(row["batch"]) for row in sample.mapInArrow(pack, PACKED).collect()]
    count = sum(batch.num_rows for batch in batches)
    if count < 2:
        raise InputError(
            f"The table has {count} vectors; a threshold is calibrated on pairs of them, and needs "
            "two at least."
        )
    merged = pa.Table.from_batches(batches).combine_chunks().to_batches()[0]
    check_rows(merged, vectors.fingerprint, table="table")
    right = matrix(merged.column("vector"), vectors.output_type, vectors.dim).astype(np.float64)
    left = query_matrix(
        right.astype(np.float32), output_type=vectors.output_type, corpus=vectors.output_type
    ).astype(np.float64)
    # The mean over all pairs of different rows, from the sum over all pairs.
    total = float(left.sum(axis=0) @ right.sum(axis=0)) - float((left * right).sum())
    mean = total / (count * (count - 1))
    if not mean <= 1 - 1e-6:  # NaN too
        raise InputError(
            f"Random pairs have a mean score of {mean:.6f}, so the vectors are equal, not finite "
            "or not of unit length, and no threshold separates them. Check how they were embedded."
        )
    return float(mean + _DISTANCE * (1 - mean))


def components(left: Numbers, right: Numbers, count: int) -> Numbers:
    """Returns the lowest number that is connected to each number from 0 to ``count - 1``.

    Args:
        left: One end of each edge.  # (edges,)
        right: The other end.  # (edges,)
        count: How many numbers there are.
    """
    labels = np.arange(count)
    while (labels[left] != labels[right]).any():
        low = np.minimum(labels[left], labels[right])
        np.minimum.at(labels, labels[left], low)
        np.minimum.at(labels, labels[right], low)
        while (labels != labels[labels]).any():
            labels = labels[labels]
    return labels


def _connect(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """One row for each id of a partition's edges: the id, and the lowest id connected to it."""
    parts = [batch for batch in batches if batch.num_rows]
    if not parts:
        return
    ends = [pa.concat_arrays([part.column(name) for part in parts]) for name in ("id", "other_id")]
    ids = pa.concat_arrays(ends).unique()
    ids = ids.take(pa.array(np.argsort(ranks(ids), kind="stable")))
    left, right = (_numbers(end, ids) for end in ends)
    labels = components(left, right, len(ids))
    columns = [ids, ids.take(pa.array(labels))]
    yield pa.RecordBatch.from_arrays(columns, ["id", "other_id"])


def _numbers(values: pa.Array, ids: pa.Array) -> Numbers:
    numbers: Numbers = pc.index_in(values, value_set=ids).to_numpy().astype(np.int64)
    return numbers
