"""Metrics agree with the programs that others publish with, and with what they mean."""

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score
from sklearn.metrics.pairwise import paired_cosine_distances

from e5spark.evaluate import metrics

TREC = {"ndcg@10": "ndcg_cut_10", "map": "map", "recall@100": "recall_100"}
DOCUMENTS = [f"d{number}" for number in range(130)]
QRELS = st.dictionaries(
    st.sampled_from(["q1", "q2", "q3", "q4"]),
    st.dictionaries(st.sampled_from(DOCUMENTS), st.integers(-1, 3), min_size=1, max_size=20),
    min_size=1,
)
RANKINGS = st.dictionaries(
    st.sampled_from(["q1", "q2", "q3", "q4", "unjudged"]),
    st.lists(st.sampled_from(DOCUMENTS), unique=True, max_size=130),
)


@given(rankings=RANKINGS, qrels=QRELS)
def test_rankings_are_judged_as_pytrec_eval_judges_them(rankings, qrels) -> None:
    found = metrics.ranking_metrics(rankings, qrels)
    run = {
        query: {document: float(-rank) for rank, document in enumerate(documents)}
        for query, documents in rankings.items()
    }
    expected = pytrec_eval.RelevanceEvaluator(qrels, set(TREC.values()) | {"recip_rank"}).evaluate(
        run
    )
    for number, query in enumerate(qrels):
        # pytrec_eval leaves out queries that the run does not have
        row = expected.get(query, dict.fromkeys([*TREC.values(), "recip_rank"], 0.0))
        for name, theirs in TREC.items():
            assert found[name][number] == pytest.approx(row[theirs], abs=1e-9), name
        rank = row["recip_rank"]
        assert found["mrr@10"][number] == pytest.approx(rank if rank >= 0.1 else 0, abs=1e-9)


def test_query_without_hits_counts_as_zero() -> None:
    found = metrics.ranking_metrics({"q1": ["d1"]}, {"q1": {"d1": 1}, "q2": {"d1": 1}})
    assert {name: values.tolist() for name, values in found.items()} == {
        name: [1.0, 0.0] for name in ("ndcg@10", "mrr@10", "map", "recall@100")
    }


def test_relevant_document_that_is_not_found_lowers_ndcg() -> None:
    found = metrics.ranking_metrics({"q": ["d1"]}, {"q": {"d1": 1, "d2": 1}})
    assert found["ndcg@10"][0] == pytest.approx(1 / (1 + 1 / np.log2(3)))


@given(st.integers(2, 60), st.integers(0, 2**32 - 1))
def test_correlations_are_those_of_scipy(rows: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    values, scores = generator.integers(0, 9, (2, rows)).astype(float)  # with ties
    values[0], scores[0] = 10, 10  # neither is constant
    values[1], scores[1] = 0, 0
    assert metrics.spearman(values, scores) == pytest.approx(
        stats.spearmanr(values, scores).statistic, abs=1e-9
    )
    assert metrics.pearson(values, scores) == pytest.approx(
        stats.pearsonr(values, scores).statistic, abs=1e-9
    )


def test_correlation_with_a_constant_is_zero() -> None:
    assert metrics.spearman(np.ones(4), np.arange(4.0)) == 0


def test_cosines_are_those_of_scikit_learn() -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 50, 16)).astype(np.float32)
    expected = 1 - paired_cosine_distances(first.astype(float), second.astype(float))
    np.testing.assert_allclose(metrics.cosines(first, second), expected, atol=1e-9)


def test_cosine_with_a_zero_vector_is_zero() -> None:
    assert metrics.cosines(np.zeros((1, 4), np.float32), np.ones((1, 4), np.float32)) == 0


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_bitext_f1_is_the_weighted_f1_of_scikit_learn(rows: int, seed: int) -> None:
    hits = np.random.default_rng(seed).integers(0, rows, rows)
    expected = f1_score(np.arange(rows), hits, average="weighted", zero_division=0)
    assert metrics.bitext_f1(hits).mean() == pytest.approx(expected, abs=1e-9)


def test_bitext_hits_are_the_highest_cosines_whatever_the_block() -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 25, 8)).astype(np.float32)
    units = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (first, second)]
    expected = np.argmax(units[0] @ units[1].T, axis=1)
    for block in (1, 7, 100):
        assert metrics.bitext_hits(first, second, block=block).tolist() == expected.tolist()


def test_interval_is_the_same_every_time_and_holds_the_mean() -> None:
    values = np.random.default_rng(0).random(200)
    low, high = metrics.interval(values)
    assert (low, high) == metrics.interval(values)
    assert low < values.mean() < high


def test_interval_agrees_with_scipy_bootstrap() -> None:
    values = np.random.default_rng(0).random(200)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    np.testing.assert_allclose(metrics.interval(values), expected, atol=0.005)


def test_interval_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(50)
    whole = metrics.interval(values)
    monkeypatch.setattr(metrics, "_BLOCK", 120)
    assert metrics.interval(values) == pytest.approx(whole)


def test_interval_of_pairs_holds_the_statistic() -> None:
    generator = np.random.default_rng(0)
    scores = generator.random(300)
    values = scores + generator.normal(scale=0.2, size=300)
    low, high = metrics.interval_of_pairs(metrics.spearman, values, scores)
    assert low < metrics.spearman(values, scores) < high
