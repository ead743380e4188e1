"""nearest, pairs and duplicates on Spark: what brute force gives, and refusals before a task."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.errors import PythonException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from e5spark import nearest
from e5spark.errors import ColumnError, ConflictError, InputError, OptionError
from e5spark.model.output_type import to_output_type
from e5spark.search import neighbors
from e5spark.search import pairs as pairs_module
from e5spark.search.duplicates import calibrated_threshold, duplicates
from e5spark.search.pairs import pairs
from tests.frames import from_arrow, to_arrow

DIM = 24
RANGES = np.array([[-1.0] * DIM, [1.0] * DIM], np.float32)
Table = Callable[..., DataFrame]


def vectors(rows: int, seed: int) -> np.ndarray:
    """Unit vectors; every tenth is equal to the first."""
    values = np.random.default_rng(seed).standard_normal((rows, DIM))
    values[::10] = values[0]
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


QUERIES, CORPUS = vectors(25, 1), vectors(150, 2)
CORPUS[75] = QUERIES[3]
CORPUS_IDS = [f"d{number}" for number in np.random.default_rng(3).permutation(150)]


@pytest.fixture(scope="module")
def table(spark: SparkSession) -> Table:
    """From ids and float32 vectors to a DataFrame in an output type; None is a null vector."""

    def make(ids: list[Any], values: Any, output_type: str = "float32", **facts: str) -> DataFrame:
        stored = to_output_type(np.array([v for v in values if v is not None]), output_type, RANGES)
        rows = iter(stored if output_type in ("float32", "int8") else map(bytes, stored))
        kind = {"float32": pa.list_(pa.float32()), "int8": pa.list_(pa.int8())}
        column = [None if value is None else next(rows) for value in values]
        numbers = None if isinstance(ids[0], str) else pa.int64()
        arrow = pa.table(
            {
                "id": pa.array(ids, numbers),
                "embedding": pa.array(column, kind.get(output_type, pa.binary())),
            }
        )
        metadata = {f"e5spark.{key}": value for key, value in facts.items()}
        metadata |= {"e5spark.output_type": output_type, "e5spark.dim": str(DIM)}
        return from_arrow(spark, arrow).repartition(3).withMetadata("embedding", metadata)

    return make


def ranked(scores: np.ndarray, k: int, ids: list[str] = CORPUS_IDS) -> list[tuple[Any, ...]]:
    """The rows that sorting all scores gives."""
    return [
        (query, ids[row], float(scores[query, row]), rank)
        for query in range(len(scores))
        for rank, row in enumerate(
            sorted(range(len(ids)), key=lambda row: (-scores[query, row], ids[row]))[:k], 1
        )
    ]


def rows_of(df: DataFrame) -> list[tuple[Any, ...]]:
    return sorted((tuple(row.values()) for row in to_arrow(df).to_pylist()), key=by_place)


def by_place(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return row[0], row[-1]


def products(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    wide = left.astype(np.float64)[:, None, :] * right.astype(np.float64)[None, :, :]
    return wide.sum(axis=2).astype(np.float32)


def test_the_rows_are_those_of_brute_force_ties_included(table, monkeypatch):
    # Several passes over the corpus, as for more queries than a task holds.
    monkeypatch.setattr(neighbors, "_CANDIDATES", 7 * 10)
    queries, corpus = table(list(range(25)), QUERIES), table(CORPUS_IDS, CORPUS)
    result = nearest(queries, corpus, k=7)
    assert result.dtypes == [
        ("query_id", "bigint"),
        ("corpus_id", "string"),
        ("score", "float"),
        ("rank", "int"),
    ]
    assert rows_of(result) == ranked(products(QUERIES, CORPUS), 7)


@pytest.mark.parametrize(
    ("query_type", "corpus_type"),
    [("float16", "float16"), ("int8", "int8"), ("binary", "binary"), ("float32", "ubinary")],
)
def test_every_output_type_is_compared_by_its_cosine(table, query_type, corpus_type):
    def cosines(values: np.ndarray, output_type: str) -> np.ndarray:
        if output_type in ("binary", "ubinary"):
            values = np.where(values > 0, 1, -1)
        elif output_type in ("int8", "uint8"):
            values = to_output_type(values, "int8", RANGES)
        elif output_type == "float16":
            values = values.astype(np.float16)
        values = values.astype(np.float64)
        return values / np.linalg.norm(values, axis=1, keepdims=True)

    queries = table(list(range(25)), QUERIES, query_type)
    rows = rows_of(nearest(queries, table(CORPUS_IDS, CORPUS, corpus_type), k=1000))
    assert len(rows) == 25 * 150  # all there are
    expected = cosines(QUERIES, query_type) @ cosines(CORPUS, corpus_type).T
    place = {id: row for row, id in enumerate(CORPUS_IDS)}
    for query, id, score, _ in rows:
        assert score == pytest.approx(expected[query, place[id]], abs=1e-3)
    order = [(query, -score, id) for query, id, score, _ in rows]
    assert order == sorted(order)


def test_a_filter_restricts_the_corpus_and_nulls_are_left_out(table):
    queries = table([1, 2, 3], [QUERIES[0], None, QUERIES[2]])
    corpus = table([1, 2, 3, 4], [CORPUS[0], None, CORPUS[2], CORPUS[3]])
    rows = rows_of(nearest(queries, corpus, k=3, filter="id <> 3"))
    assert {(query, id) for query, id, _, _ in rows} == {(1, 1), (1, 4), (3, 1), (3, 4)}
    rows = rows_of(nearest(queries, corpus, k=1, filter=F.col("id") == 3))
    assert [row[1] for row in rows] == [3, 3]


def test_no_queries_and_no_corpus_give_no_rows(table):
    queries, corpus = table([1], QUERIES[:1]), table([1], CORPUS[:1])
    assert nearest(queries.where("false"), corpus, k=1).collect() == []
    assert nearest(queries, corpus.where("false"), k=1).collect() == []


def refused(table: Table) -> dict[str, tuple[type[Exception], str, Callable[[], object]]]:
    queries, corpus = table([1], QUERIES[:1]), table([1], CORPUS[:1])
    other = table([1], QUERIES[:1], fingerprint="f" * 64)
    return {
        "k": (OptionError, "k is 0", lambda: nearest(queries, corpus, k=0)),
        "no column": (
            ColumnError,
            "no column 'vector'",
            lambda: nearest(queries, corpus, k=1, vector="vector"),
        ),
        "id": (ColumnError, "must be a string", lambda: nearest(queries.selectExpr(
            "cast(id as double) id", "embedding"), corpus, k=1)),
        "doubles": (ColumnError, "array<double>", lambda: nearest(queries, corpus.selectExpr(
            "id", "cast(embedding as array<double>) embedding"), k=1)),
        "bytes": (ColumnError, "does not say which output type", lambda: nearest(
            queries, corpus.selectExpr("id", "cast('a' as binary) embedding"), k=1)),
        "output types": (ColumnError, "are float32, the corpus' int8", lambda: nearest(
            queries, table([1], CORPUS[:1], "int8"), k=1)),
        "fingerprints": (ConflictError, "must not be compared", lambda: nearest(
            other, table([1], CORPUS[:1], fingerprint="e" * 64), k=1)),
        "rows of two fingerprints": (ConflictError, "different fingerprints", lambda: nearest(
            table([1, 2], QUERIES[:2]).withColumn("embedding_fp", F.col("id").cast("string")),
            corpus, k=1)),
        "rows of another fingerprint than the corpus": (
            ConflictError, "'0123' beside 'eeeeeeeeeeeeeeee'", lambda: nearest(
                queries.withColumn("embedding_fp", F.lit("0123")),
                table([1], CORPUS[:1], fingerprint="e" * 64), k=1)),
        "null id": (InputError, "is null", lambda: nearest(
            table([None, 2], QUERIES[:2]), corpus, k=1)),
        "equal ids": (InputError, "must be unique", lambda: nearest(
            table([2, 2], QUERIES[:2]), corpus, k=1)),
        "threshold": (OptionError, "from -1 to 1", lambda: pairs(corpus, threshold=90)),
        "one row": (InputError, "1 vectors", lambda: calibrated_threshold(corpus)),
        "NaN": (InputError, "not finite", lambda: calibrated_threshold(
            table([1, 2], np.full((2, DIM), np.nan, np.float32)))),
    }  # fmt: skip


def test_what_cannot_work_is_refused_before_the_corpus_is_read(table):
    for error, message, call in refused(table).values():
        with pytest.raises(error, match=message):
            call()


def test_rows_of_the_corpus_that_break_the_contract_stop_the_search(table):
    queries = table([1], QUERIES[:1], fingerprint="f" * 64)
    wrong = {
        "corpus is null": table([None], CORPUS[:1]),
        "'0123' beside 'ffffffffffffffff'": table([1], CORPUS[:1]).withColumn(
            "embedding_fp", F.lit("0123")
        ),
        "not finite": table([1], [np.full(DIM, np.nan, np.float32)]),
    }
    for message, corpus in wrong.items():
        with pytest.raises(PythonException, match=message):
            nearest(queries, corpus, k=1).collect()


def test_pairs_are_those_of_brute_force_each_once(table, monkeypatch):
    monkeypatch.setattr(pairs_module, "_BLOCK_ROWS", 40)
    scores = products(CORPUS, CORPUS)
    threshold = 0.4  # equal vectors, and some by chance
    expected = [
        (*sorted((CORPUS_IDS[row], CORPUS_IDS[other])), float(scores[row, other]))
        for row, other in itertools.combinations(range(150), 2)
        if scores[row, other] >= np.float32(threshold)
    ]
    result = pairs(table([*CORPUS_IDS, "none"], [*CORPUS, None]), threshold=threshold)
    assert len(expected) > 200
    assert sorted(rows_of(result)) == sorted(expected)


def test_duplicates_are_groups_with_the_lowest_id_kept(table, monkeypatch):
    monkeypatch.setattr(pairs_module, "_BLOCK_ROWS", 60)
    rows = to_arrow(duplicates(table(CORPUS_IDS, CORPUS), threshold=0.99)).to_pylist()
    equal = sorted(CORPUS_IDS[::10])
    assert sorted(row["id"] for row in rows) == equal
    assert {row["group_id"] for row in rows} == {equal[0]}
    assert [row["id"] for row in rows if row["keep"]] == equal[:1]


def test_the_threshold_comes_from_the_mean_of_random_pairs(table):
    scores = products(CORPUS, CORPUS)[np.triu_indices(150, 1)]
    threshold = calibrated_threshold(table(CORPUS_IDS, CORPUS))
    assert threshold == pytest.approx(0.1 * scores.mean() + 0.9, abs=1e-6)


def test_ids_of_pairs_must_be_unique(table):
    with pytest.raises(PythonException, match="ids must be unique"):
        pairs(table([1, 1], CORPUS[:2]), threshold=0.5).collect()


@pytest.mark.large
def test_all_pairs_of_100_000_vectors_are_found_each_once(spark: SparkSession, tmp_path: Path):
    rows, dim, threshold = 100_000, 384, 0.9
    rng = np.random.default_rng(5)
    values = rng.standard_normal((rows, dim), dtype=np.float32)
    copies = rng.integers(0, rows // 2, 3000)  # near-duplicates, on both sides of the threshold
    noise = rng.standard_normal((3000, dim), dtype=np.float32) * rng.uniform(0, 0.6, (3000, 1))
    values[-3000:] = values[copies] + noise
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    expected = {}
    for start in range(0, rows, 2000):
        near = values[start : start + 2000] @ values.T >= threshold - 1e-4
        for row, other in zip(*np.nonzero(near), strict=True):
            row, other = int(row) + start, int(other)
            score = np.float32((values[row].astype(np.float64) * values[other]).sum())
            if row < other and score >= np.float32(threshold):
                expected[row, other] = float(score)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), dim)
    table = pa.table({"id": range(rows), "embedding": lists.cast(pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "vectors.parquet")
    found = rows_of(
        pairs(spark.read.parquet(str(tmp_path / "vectors.parquet")), threshold=threshold)
    )
    assert len(found) == len(expected) > 1000
    assert {(low, high): score for low, high, score in found} == expected
