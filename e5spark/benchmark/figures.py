"""The reported figures, from measurements: medians, spreads, shares and ratios."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from e5spark.benchmark.contenders import RECIPE, Contender


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows that a contender embeds.

    Attributes:
        rows: Number of rows.
        tokens: Tokens of all rows after truncation, without padding.
        flops: Floating-point operations that these tokens need; None if unknown for the model.
    """

    rows: int
    tokens: int
    flops: float | None


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns the median, the minimum and the maximum."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def summarize(
    contender: Contender,
    runs: list[dict[str, Any]],
    rows: Rows,
    peaks: dict[str, float],
) -> dict[str, Any]:
    """Returns the figures of one contender.

    Args:
        contender: The contender.
        runs: Its answers, one per round.
        rows: The rows that it embedded in each round.
        peaks: Precision to 10^9 operations per second.
    """
    seconds = [run["seconds"] for run in runs]
    has_model = not contender.transport
    peak = peaks.get(contender.precision)
    starts = [run["first"] for run in runs if "first" in run]
    first_vectors = [
        start["first_vector_seconds"] for start in starts if start["first_vector_seconds"]
    ]
    padded = sum(run["padded"] for run in runs)
    share = None
    if has_model and peak and rows.flops:
        share = spread([rows.flops / (second * peak * 1e9) for second in seconds])
    return {
        "name": contender.name,
        "kind": contender.kind,
        "workers": contender.workers,
        "precision": contender.precision if has_model else None,
        "rows": rows.rows,
        "seconds": spread(seconds),
        "texts_per_second": _rates(rows.rows, seconds),
        "tokens_per_second": _rates(rows.tokens, seconds) if has_model else None,
        "computed_tokens": round(median(run["tokens"] for run in runs)) if has_model else None,
        "padding_efficiency": sum(run["tokens"] for run in runs) / padded if padded else None,
        "share_of_peak": share,
        "cpu_seconds": spread([run["cpu_seconds"] for run in runs]),
        "worker_cpu_seconds": _spread_of(runs, "worker_cpu_seconds"),
        "first_vector_seconds": spread(first_vectors) if first_vectors else None,
        # Only for another environment; the machine's description has this environment's versions.
        "versions": starts[0]["versions"] if contender.python else None,
        "worker_pss_mb": _megabytes(runs[-1]["workers"], "pss"),
        "worker_peak_rss_mb": _megabytes(runs[-1]["workers"], "peak_rss"),
    }


def compare(summaries: list[dict[str, Any]]) -> None:
    """Adds ``ratio_to_recipe`` to each summary: the ratio of the median speeds on equal rows."""
    recipe = next((summary for summary in summaries if summary["name"] == RECIPE), None)
    for summary in summaries:
        summary["ratio_to_recipe"] = (
            summary["texts_per_second"]["median"] / recipe["texts_per_second"]["median"]
            if recipe is not None and summary["precision"] is not None
            else None
        )


def agreement(summaries: list[dict[str, Any]], vectors: dict[str, Any]) -> str | None:
    """Adds ``worst_cosine`` to each summary; returns the name of the reference contender.

    A contender whose vectors differ from the first one's is not faster but wrong.

    Args:
        summaries: The summaries of all contenders.
        vectors: Name to the vectors of the first texts.
    """
    names = [summary["name"] for summary in summaries if vectors.get(summary["name"]) is not None]
    for summary in summaries:
        summary["worst_cosine"] = None
        if summary["name"] in names:
            reference, actual = (_unit(vectors[name]) for name in (names[0], summary["name"]))
            summary["worst_cosine"] = round(float((reference * actual).sum(axis=1).min()), 6)
    return names[0] if names else None


def _rates(count: int, seconds: Sequence[float]) -> dict[str, float]:
    return spread([count / second for second in seconds])


def _unit(vectors: Any) -> Any:  # noqa: ANN401  # nested lists to an array
    array = np.array(vectors, dtype=np.float64)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def _spread_of(runs: list[dict[str, Any]], name: str) -> dict[str, float] | None:
    values = [run[name] for run in runs if run[name] is not None]
    return spread(values) if values else None


def _megabytes(workers: list[dict[str, int]], name: str) -> list[int]:
    return [round(memory[name] / 1e6) for memory in workers if name in memory]
