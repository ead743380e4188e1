"""Retrieval and re-ranking: rankings of documents for the queries that were judged."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from e5spark.errors import InputError
from e5spark.evaluate import metrics
from e5spark.evaluate.config import RetrievalConfig, TaskConfig
from e5spark.evaluate.datasets import Judgements
from e5spark.evaluate.embedding import VectorTable
from e5spark.evaluate.tasks import Judgement, mean
from e5spark.evaluate.vectors import collect
from e5spark.names import listed, quoted
from e5spark.search import nearest
from e5spark.spark.arrow import to_arrow

log = logging.getLogger("e5spark")

# nDCG and MRR of re-ranking have MTEB's names; MAP is its main score.
_MAIN = {"retrieval": "ndcg@10", "reranking": "map"}


def judge(
    spark: SparkSession,
    task: TaskConfig,
    tables: Mapping[str, VectorTable],
    qrels: Judgements,
) -> Judgement:
    """Returns the scores of a retrieval or a re-ranking, over all queries that were judged.

    A query that is not in the table of queries, or has no vector, counts as one without hits.

    Args:
        spark: The session.
        task: The task.
        tables: Its ``queries`` and ``corpus``.
        qrels: The judgements.

    Raises:
        InputError: If no judged query is in the table of queries.
    """
    settings = task.settings
    assert isinstance(settings, RetrievalConfig)
    queries = judged_rows(spark, tables["queries"], qrels)
    searched = queries.count()
    if not searched:
        raise InputError(
            f"None of the {len(qrels)} judged queries, such as {listed(sorted(qrels)[:3])}, is in "
            f"column {tables['queries'].id!r} of the queries; name the column that the judgements "
            "mean with id."
        )
    if searched < len(qrels):
        log.warning(
            "%s: %d of %d judged queries have no vector and count 0.",
            task.key,
            len(qrels) - searched,
            len(qrels),
        )
    if task.kind == "reranking":
        hits = _reranked(spark, queries, tables, qrels)
    else:
        corpus = _ids_and_vectors(tables["corpus"])
        # One more, because the query itself may be among its hits.
        k = settings.depth + settings.drop_same_id
        hits = to_arrow(nearest(queries, corpus, k=k))
    hits = ranked(hits, depth=settings.depth, drop_same_id=settings.drop_same_id)
    values = metrics.ranking_metrics(rankings(hits), qrels)
    main = _MAIN[task.kind]
    order = [main, *(name for name in values if name != main)]
    return Judgement(
        scores={name: mean(values[name]) for name in order},
        counts={
            "queries": len(qrels),
            "searched": searched,
            "judgements": sum(map(len, qrels.values())),
            "hits": hits.num_rows,
        },
        values=values,
        queries=tuple(qrels),
        hits=hits,
    )


def ranked(hits: pa.Table, *, depth: int, drop_same_id: bool) -> pa.Table:
    """Returns hits in the order of their queries and ranks, ranked from 1 again.

    Args:
        hits: ``query_id, corpus_id, score, rank``.
        depth: Most hits of a query.
        drop_same_id: Whether to leave out hits whose id is the query's.
    """
    if drop_same_id:
        hits = hits.filter(pc.not_equal(hits["query_id"], hits["corpus_id"]))
    hits = hits.sort_by([("query_id", "ascending"), ("rank", "ascending")])
    queries = hits["query_id"].to_numpy(zero_copy_only=False)
    begins = np.flatnonzero(np.append(True, queries[1:] != queries[:-1])[: len(queries)])
    first = np.repeat(begins, np.diff(np.append(begins, len(queries))))  # (hits,)
    ranks = np.arange(len(queries)) - first + 1
    names = ["query_id", "corpus_id", "score"]
    hits = hits.select(names).append_column("rank", pa.array(ranks, pa.int32()))
    return hits.filter(pc.less_equal(hits["rank"], depth))


def rankings(hits: pa.Table) -> dict[str, list[str]]:
    """Returns the documents of each query, best first, of hits that are in order."""
    result: dict[str, list[str]] = {}
    pairs = zip(hits["query_id"].to_pylist(), hits["corpus_id"].to_pylist(), strict=True)
    for query, document in pairs:
        result.setdefault(query, []).append(document)
    return result


def judged_rows(spark: SparkSession, table: VectorTable, ids: Iterable[str]) -> DataFrame:
    """Returns the rows of a table that have a vector and one of some ids, which are strings."""
    judged = spark.createDataFrame([(id,) for id in ids], "judged string")
    df = _ids_and_vectors(table).filter("embedding IS NOT NULL")
    return df.join(judged, F.col("id") == F.col("judged"), how="left_semi")


def _ids_and_vectors(table: VectorTable) -> DataFrame:
    """The columns that a search needs; ids as strings, because judgements have strings."""
    vectors = table.vectors[0]
    columns = {vectors.name: "embedding"}
    if vectors.fingerprints:
        columns[vectors.fingerprints] = "embedding_fp"
    return table.df.select(
        F.col(quoted(table.id)).cast("string").alias("id"),
        *(F.col(quoted(name)).alias(alias) for name, alias in columns.items()),
    )


def _reranked(
    spark: SparkSession, searched: DataFrame, tables: Mapping[str, VectorTable], qrels: Judgements
) -> pa.Table:
    """Ranks, for each query, the documents that were judged for it; ties by id, ascending."""
    queries, corpus = tables["queries"], tables["corpus"]
    documents = judged_rows(spark, corpus, {each for judged in qrels.values() for each in judged})
    sides = []
    for df, table in ((searched, queries), (documents, corpus)):
        column = replace(table.vectors[0], name="embedding")
        (vectors,), ids = collect(df, (column,), column="id")
        sides.append((vectors, {id: row for row, id in enumerate(ids)}))
    (left, query_rows), (right, document_rows) = sides
    columns: dict[str, list[object]] = {"query_id": [], "corpus_id": [], "score": [], "rank": []}
    for query in sorted(query_rows):
        candidates = sorted(each for each in qrels[query] if each in document_rows)
        rows = [document_rows[each] for each in candidates]
        one = np.repeat(left[[query_rows[query]]], len(rows), axis=0)
        scores = metrics.cosines(one, right[rows])
        order = np.argsort(-scores, kind="stable")
        columns["query_id"] += [query] * len(rows)
        columns["corpus_id"] += [candidates[row] for row in order]
        columns["score"] += scores[order].tolist()
        columns["rank"] += range(1, len(rows) + 1)
    return pa.table(columns)
