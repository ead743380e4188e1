"""The best rows of a corpus, from blocks of it: what sorting all scores gives, ties included."""

import itertools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e5spark.errors import InputError
from e5spark.search import top_k
from e5spark.search.top_k import TopK, exact_scores, rounding_error

Row = tuple[int, object, float]


def brute_force(queries: np.ndarray, corpus: np.ndarray, ids: Sequence, k: int) -> list[Row]:
    """Query, id and score of the best rows, by a sort of all products in float64."""
    products = queries.astype(np.float64)[:, None, :] * corpus.astype(np.float64)[None, :, :]
    scores = products.sum(axis=2).astype(np.float32)
    return [
        (query, ids[row], float(scores[query, row]))
        for query in range(len(queries))
        for row in sorted(range(len(corpus)), key=lambda row: (-scores[query, row], ids[row]))[:k]
    ]


def best(
    queries: np.ndarray, corpus: np.ndarray, ids: pa.Array, k: int, cuts: Sequence[int] = ()
) -> list[Row]:
    """The same rows from TopK, which gets the corpus in parts."""
    rows = TopK(queries, k, ids.type)
    bounds = [0, *sorted(cut % (len(corpus) + 1) for cut in cuts), len(corpus)]
    for start, end in itertools.pairwise(bounds):
        rows.add(corpus[start:end], ids.slice(start, end - start))
    query, best_ids, scores = rows.result()
    return list(zip(query.tolist(), best_ids.to_pylist(), map(float, scores), strict=True))


@st.composite
def searches(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, pa.Array, int, list[int]]:
    """Queries and a corpus with many equal vectors, in an order that has nothing to do with ids."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dim, rows = draw(st.integers(1, 40)), draw(st.integers(0, 200))
    vectors = rng.standard_normal((draw(st.integers(1, 30)), dim)).astype(np.float32)
    if draw(st.booleans()):
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    corpus = vectors[rng.integers(0, len(vectors), rows)]
    queries = vectors[rng.integers(0, len(vectors), draw(st.integers(1, 20)))]
    numbers = rng.permutation(rows)
    ids = pa.array(numbers, pa.int64())
    if draw(st.booleans()):
        ids = pa.array([f"é{number}" for number in numbers], pa.string())
    cuts = draw(st.lists(st.integers(0, 1000), max_size=5))
    return queries, corpus, ids, draw(st.integers(1, 30)), cuts


@given(search=searches(), block=st.tuples(st.integers(1, 8), st.integers(1, 64)))
def test_the_best_rows_are_those_of_a_sort_whatever_the_blocks(search, block):
    queries, corpus, ids, k, cuts = search
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(top_k, "_QUERY_ROWS", block[0])
        patch.setattr(top_k, "_CORPUS_ROWS", block[1])
        patch.setattr(top_k, "_PENDING_ROWS", 16)
        patch.setattr(top_k, "_SCORED_ROWS", 7)
        assert best(queries, corpus, ids, k, cuts) == brute_force(
            queries, corpus, ids.to_pylist(), k
        )


def test_equal_vectors_get_equal_scores_in_blocks_of_any_shape():
    rng = np.random.default_rng(1)
    vector = rng.standard_normal((1, 384)).astype(np.float32)
    corpus = np.repeat(vector, 5000, axis=0)
    ids = pa.array(rng.permutation(5000), pa.int64())
    rows = best(rng.standard_normal((3, 384)).astype(np.float32), corpus, ids, 10, [1, 17, 4099])
    assert [number for _, number, _ in rows] == [*range(10)] * 3
    assert len({score for _, _, score in rows}) == 3


def test_memory_is_bounded_although_all_rows_are_equal():
    rows = TopK(np.ones((2, 8), np.float32), 3, pa.int64())
    for start in range(0, 100_000, 10_000):
        ids = pa.array(range(start, start + 10_000), pa.int64())
        rows.add(np.ones((10_000, 8), np.float32), ids)
        assert len(rows._score) + rows._pending_rows() <= 2 * 3 * 2 + 2 * 10_000
    assert rows.result()[1].to_pylist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("dim", [1, 64, 384, 1024])
def test_a_float32_product_is_within_the_bound(dim):
    rng = np.random.default_rng(dim)
    left, right = (rng.standard_normal((200, dim)).astype(np.float32) for _ in range(2))
    rows, columns = np.divmod(np.arange(200 * 200), 200)
    exact = exact_scores(left, right, (rows, columns)).reshape(200, 200)
    assert np.abs(left @ right.T - exact).max() <= rounding_error(left, right)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_a_component_that_is_not_finite_is_refused(value):
    corpus = np.ones((3, 4), np.float32)
    corpus[1, 2] = value
    rows = TopK(np.ones((1, 4), np.float32), 1, pa.int64())
    with pytest.raises(InputError, match="not finite"):
        rows.add(corpus, pa.array([1, 2, 3]))


def test_a_score_has_no_sign_if_it_is_zero():
    scores = exact_scores(np.float32([[-1.0]]), np.float32([[0.0]]), (np.array([0]), np.array([0])))
    assert not np.signbit(scores).any()


def test_equal_rows_of_a_corpus_are_scored_k_times_and_not_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scored = []

    def counted(left: np.ndarray, right: np.ndarray, pairs: tuple) -> np.ndarray:
        scored.append(len(pairs[0]))
        return exact_scores(left, right, pairs)

    monkeypatch.setattr(top_k, "exact_scores", counted)
    rng = np.random.default_rng(1)
    queries = rng.standard_normal((32, 8)).astype(np.float32)
    corpus = np.repeat(rng.standard_normal((2, 8)).astype(np.float32), 2000, axis=0)
    ids = pa.array(rng.permutation(4000))
    assert best(queries, corpus, ids, 3) == brute_force(queries, corpus, ids.to_pylist(), 3)
    assert sum(scored) <= 32 * 3 * 2
