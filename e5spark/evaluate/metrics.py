"""The metrics, in NumPy: values for each query or pair, their means, and bootstrap intervals.

Rankings are judged as trec_eval does (pytrec_eval agrees to 1e-9): gains are linear, a judgement
below 1 is not relevant, and the ideal ranking has all relevant documents of the query, whether or
not the search could reach them. A query without hits has 0 everywhere.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

Floats = npt.NDArray[np.float64]
# query id -> document ids, best first
Rankings = Mapping[str, Sequence[str]]
# query id -> document id -> relevance
Qrels = Mapping[str, Mapping[str, int]]

RESAMPLES = 1000
_SEED = 42
_BLOCK = 1 << 22  # values that one block of resamples holds


def ranking_metrics(rankings: Rankings, qrels: Qrels) -> dict[str, Floats]:
    """Returns each metric of a retrieval: one value for each query, in the order of ``qrels``.

    Args:
        rankings: The hits of each query. A query that is missing counts as one without hits, and a
            query that was not judged is ignored.
        qrels: The judgements.
    """
    rows = [_ranking(rankings.get(query, ()), judged) for query, judged in qrels.items()]
    return {name: np.array([row[name] for row in rows]) for name in (rows[0] if rows else ())}


def _ranking(documents: Sequence[str], judged: Mapping[str, int]) -> dict[str, float]:
    gains = np.array([max(judged.get(document, 0), 0) for document in documents], dtype=float)
    ideal = np.sort([float(gain) for gain in judged.values() if gain > 0])[::-1]
    relevant = gains > 0
    return {
        "ndcg@10": ndcg(gains, ideal, 10),
        "mrr@10": reciprocal_rank(relevant[:10]),
        "map": average_precision(relevant, len(ideal)),
        "recall@100": float(relevant[:100].sum()) / max(len(ideal), 1),
    }


def ndcg(gains: Floats, ideal: Floats, k: int) -> float:
    """Returns the discounted gain of the first ``k`` hits, as a share of the ideal ranking's.

    Järvelin and Kekäläinen, 2002, in trec_eval's form: the gain at rank r is divided by
    log2(r + 1).

    Args:
        gains: The gain of each hit, by rank.
        ideal: All gains above 0 that the query has, in descending order.
        k: The depth.
    """
    best = _discounted(ideal[:k])
    return _discounted(gains[:k]) / best if best > 0 else 0.0


def _discounted(gains: Floats) -> float:
    return float((gains / np.log2(np.arange(2, len(gains) + 2))).sum())


def reciprocal_rank(relevant: npt.NDArray[np.bool_]) -> float:
    """Returns 1 / rank of the first relevant hit; 0 if there is none."""
    ranks = np.flatnonzero(relevant)
    return 1 / (int(ranks[0]) + 1) if len(ranks) else 0.0


def average_precision(relevant: npt.NDArray[np.bool_], total: int) -> float:
    """Returns the mean, over all ``total`` relevant documents, of the precision at their ranks.

    A relevant document that is no hit adds 0.
    """
    ranks = np.flatnonzero(relevant) + 1
    return float((np.arange(1, len(ranks) + 1) / ranks).sum()) / max(total, 1)


def cosines(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> Floats:
    """Returns the cosine of each pair of rows; 0 where a vector is zero.  # (rows,).

    Computed in float64, so that ranks do not depend on the order of a sum.
    """
    one, other = first.astype(np.float64), second.astype(np.float64)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    products = np.einsum("ij,ij->i", one, other)
    result: Floats = np.divide(products, lengths, out=np.zeros(len(products)), where=lengths > 0)
    return result


def pearson(values: Floats, scores: Floats) -> float:
    """Returns Pearson's correlation; 0 where either side is constant, as it says nothing."""
    if len(values) < 2 or np.ptp(values) == 0 or np.ptp(scores) == 0:
        return 0.0
    return float(np.corrcoef(values, scores)[0, 1])


def spearman(values: Floats, scores: Floats) -> float:
    """Returns Spearman's correlation; equal values share the mean of their ranks."""
    return pearson(_ranks(values), _ranks(scores))


def _ranks(values: Floats) -> Floats:
    return np.asarray(pd.Series(values).rank(), dtype=np.float64)


def bitext_hits(
    first: npt.NDArray[np.float32], second: npt.NDArray[np.float32], *, block: int = 1024
) -> npt.NDArray[np.int64]:
    """Returns, for each row, the row on the other side with the highest cosine; ties: the lowest.

    Args:
        first: The sentences.  # (rows, dim)
        second: Their translations, in the same order.  # (rows, dim)
        block: Rows of one product.
    """
    one, other = _unit(first), _unit(second)
    return np.concatenate(
        [
            np.argmax(one[begin : begin + block] @ other.T, axis=1)
            for begin in range(0, len(one), block)
        ]
    )


def _unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths == 0, 1, lengths)).astype(np.float32, copy=False)


def bitext_f1(hits: npt.NDArray[np.int64]) -> Floats:
    """Returns F1 of each row's translation as a class; their mean is MTEB's weighted F1.

    A translation that is the nearest of n sentences has precision 1/n, if its own is among them.
    """
    correct = hits == np.arange(len(hits))
    times_hit = np.bincount(hits, minlength=len(hits))
    return np.where(correct, 2 / (times_hit + 1), 0.0)


def interval(values: Floats) -> tuple[float, float]:
    """Returns the 95 % bootstrap interval of the mean: percentiles of 1,000 resamples.

    The seed is fixed, so that the same values have the same interval.
    """
    generator = np.random.default_rng(_SEED)
    count = max(1, _BLOCK // max(len(values), 1))
    means: list[Floats] = []
    for begin in range(0, RESAMPLES, count):
        rows = min(count, RESAMPLES - begin)
        means.append(values[generator.integers(0, len(values), (rows, len(values)))].mean(axis=1))
    return _percentiles(np.concatenate(means))


def interval_of_pairs(
    statistic: Callable[[Floats, Floats], float], values: Floats, scores: Floats
) -> tuple[float, float]:
    """Returns the 95 % bootstrap interval of a statistic of pairs; see ``interval``."""
    generator = np.random.default_rng(_SEED)
    samples = (generator.integers(0, len(values), len(values)) for _ in range(RESAMPLES))
    return _percentiles(np.array([statistic(values[rows], scores[rows]) for rows in samples]))


def _percentiles(statistics: Floats) -> tuple[float, float]:
    low, high = np.percentile(statistics, [2.5, 97.5])
    return float(low), float(high)
