"""``nearest``: the k best rows of a corpus for each query; exact, for any size of corpus."""

import functools
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from e5spark.errors import InputError, OptionError
from e5spark.search.packing import PACKED, check_rows, from_bytes, pack, selected, to_bytes
from e5spark.search.top_k import TopK
from e5spark.search.vectors import (
    VectorColumn,
    check_comparable,
    check_dims,
    id_column,
    matrix,
    query_matrix,
    vector_column,
)

log = logging.getLogger(__name__)

# What one task holds for the queries: their vectors, and k candidates for each.
_QUERY_BYTES, _CANDIDATES = 32 << 20, 2_000_000


@dataclass(frozen=True, kw_only=True)
class _Queries:
    """Some of the queries, as every task gets them.

    Attributes:
        batch: Ids and vectors of the queries, in Arrow's IPC format.
        vectors: The queries' column of vectors.
        corpus: The corpus' column of vectors.
        fingerprint: The fingerprint that rows of the corpus must have; None if it is not known.
        k: Rows for each query.
    """

    batch: bytes
    vectors: VectorColumn
    corpus: VectorColumn
    fingerprint: str | None
    k: int


def nearest(
    queries: DataFrame,
    corpus: DataFrame,
    *,
    k: int,
    query_id: str = "id",
    corpus_id: str = "id",
    vector: str = "embedding",
    filter: str | Column | None = None,
) -> DataFrame:
    """Returns the ``k`` rows of a corpus with the highest scores, for each query.

    The columns are ``query_id`` and ``corpus_id``, of the ids' types; ``score``, float; and
    ``rank``, int, from 1. The search is exact: every query is compared with every row. Only the
    order of E5's scores means anything: the cosine of two unrelated texts is about 0.7.

    The queries are collected when this is called: about 1.5 KB each at 384 dimensions. The corpus
    is read by an action on the result, once for every 32 MB of queries. A task holds these
    queries, one Arrow batch of the corpus and the best ``k`` rows: less than 1 GB, whatever the
    corpus.

    A score is the product of two vectors, summed in float64 and rounded to float32, so it depends
    on nothing but the two vectors. Rows of equal score are ranked by their ids, ascending. Two runs
    give the same rows. By output type:

    - float32 and float16: the inner product, which is the cosine, because E5's vectors have unit
      length;
    - int8 and uint8: the cosine of the steps of the calibration;
    - binary and ubinary: the cosine of the signs, ``1 - 2 * Hamming distance / dim``. Queries may
      be float32: they are compared with the signs, which ranks better than signs alone and is what
      re-scoring means elsewhere.

    Queries without a vector give no rows, and rows of the corpus without one are never in the
    result. If the corpus has fewer than ``k`` rows, all of them are ranked.

    Args:
        queries: Ids and vectors of the queries; ids must be unique.
        corpus: Ids and vectors of the corpus. Rows of equal ids count as different rows.
        k: Rows for each query.
        query_id: The column of the queries' ids: strings or whole numbers.
        corpus_id: The column of the corpus' ids, which may be of another type.
        vector: The column of vectors in both tables.
        filter: The rows of the corpus to search, as a condition in SQL or a column. A condition on
            a partition column reads only these partitions.

    Raises:
        ColumnError: If a column is missing or of the wrong type, or the output types or dims of
            the vectors differ.
        ConflictError: If the fingerprints of the vectors differ.
        InputError: If an id of a query is null or not unique; from a task, if an id of the corpus
            is null, or a vector has a component that is null or not finite.
        OptionError: If ``k`` is not a positive whole number.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise OptionError(f"k is {k!r}; it must be a positive whole number.")
    left, right = vector_column(queries, vector), vector_column(corpus, vector)
    query_ids, corpus_ids = id_column(queries, query_id), id_column(corpus, corpus_id)
    check_comparable(left, right)
    if filter is not None:
        corpus = corpus.where(filter)
    rows = selected(corpus, corpus_ids, right).where(F.col("vector").isNotNull())
    schema = T.StructType(
        [
            T.StructField("query_id", query_ids.dataType),
            T.StructField("corpus_id", corpus_ids.dataType),
            T.StructField("score", T.FloatType()),
        ]
    )
    best = [
        rows.mapInArrow(functools.partial(_search, part), schema)
        for batch in _collected(selected(queries, query_ids, left), left, right)
        for part in _parts(batch, left, right, k)
    ]
    if not best:
        best = [corpus.sparkSession.createDataFrame([], schema)]
    return _ranked(functools.reduce(DataFrame.unionAll, best), k)


def _ranked(best: DataFrame, k: int) -> DataFrame:
    """The best k rows of each query, from the best rows of each task."""
    order = Window.partitionBy("query_id").orderBy(F.col("score").desc(), F.col("corpus_id"))
    return best.withColumn("rank", F.row_number().over(order)).where(F.col("rank") <= k)


def _collected(
    queries: DataFrame, vectors: VectorColumn, corpus: VectorColumn
) -> list[pa.RecordBatch]:
    """The queries that have a vector, in one batch; no batch if there are none.

    Raises:
        ConflictError: If their fingerprints differ, or are not the corpus'.
        InputError: If an id is null or not unique.
    """
    batches = [from_bytes(row["batch"]) for row in queries.mapInArrow(pack, PACKED).collect()]
    if not batches:
        return []
    table = pa.Table.from_batches(batches)
    usable = table.filter(pc.is_valid(table["vector"])).combine_chunks()
    if usable.num_rows < table.num_rows:
        log.warning(
            "%d of %d queries have no vector and get no rows.",
            table.num_rows - usable.num_rows,
            table.num_rows,
        )
    fingerprint = vectors.fingerprint
    if fingerprint is None and vectors.output_type == corpus.output_type:
        fingerprint = corpus.fingerprint  # which the column of each row's fingerprint must name
    for batch in usable.to_batches():
        check_rows(batch, fingerprint, table="table of queries")
    if pc.count_distinct(usable["id"]).as_py() < usable.num_rows:
        raise InputError(
            "An id of the queries is in several rows; ids of queries must be unique. Remove "
            "the duplicates: queries.dropDuplicates([...])."
        )
    return list(usable.to_batches())


def _parts(
    batch: pa.RecordBatch, vectors: VectorColumn, corpus: VectorColumn, k: int
) -> Iterator[_Queries]:
    """The queries in parts that a task can hold."""
    fingerprint = corpus.fingerprint
    if fingerprint is None and vectors.output_type == corpus.output_type:
        stored = "fingerprint" in batch.schema.names
        fingerprint = batch.column("fingerprint")[0].as_py() if stored else vectors.fingerprint
    size = max(1, batch.nbytes // batch.num_rows)
    rows = max(1, min(_QUERY_BYTES // size, _CANDIDATES // k))
    for start in range(0, batch.num_rows, rows):
        yield _Queries(
            batch=to_bytes(batch.slice(start, rows).select(["id", "vector"])),
            vectors=vectors,
            corpus=corpus,
            fingerprint=fingerprint,
            k=k,
        )


def _search(queries: _Queries, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The best rows of a part of the corpus, for each query; runs on executors."""
    batch = from_bytes(queries.batch)
    left, right = queries.vectors, queries.corpus
    vectors = matrix(batch.column("vector"), left.output_type, left.dim or right.dim)
    vectors = query_matrix(vectors, output_type=left.output_type, corpus=right.output_type)
    best: TopK | None = None
    for rows in batches:
        if not rows.num_rows:
            continue
        check_rows(rows, queries.fingerprint, table="corpus")
        corpus = matrix(rows.column("vector"), right.output_type, right.dim or left.dim)
        check_dims(vectors.shape[1], corpus.shape[1])
        if best is None:
            best = TopK(vectors, queries.k, rows.column("id").type)
        best.add(corpus, rows.column("id"))
    if best is not None:
        query, ids, scores = best.result()
        arrays = [batch.column("id").take(pa.array(query)), ids, pa.array(scores)]
        yield pa.RecordBatch.from_arrays(arrays, ["query_id", "corpus_id", "score"])
