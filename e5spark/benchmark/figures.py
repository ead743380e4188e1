"""From what was measured to what is reported: medians, spreads, shares and ratios."""

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
        rows: How many.
        tokens: Of all of them, without padding, as the model reads them.
        flops: That they need, without padding; None if the model's are not known.
    """

    rows: int
    tokens: int
    flops: float | None


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns median, least and most."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def summarize(
    contender: Contender,
    runs: list[dict[str, Any]],
    rows: Rows,
    peaks: dict[str, float],
) -> dict[str, Any]:
    """Returns the figures of one contender.

    Args:
        contender: Which one.
        runs: Its answers, one for each round.
        rows: What it embedded in each.
        peaks: Precision to 10^9 operations a second.
    """
    seconds = [run["seconds"] for run in runs]
    model = not contender.transport
    peak = peaks.get(contender.precision)
    firsts = [run["first"] for run in runs if "first" in run]
    waited = [each["first_vector_seconds"] for each in firsts if each["first_vector_seconds"]]
    padded = sum(run["padded"] for run in runs)
    share = None
    if model and peak and rows.flops:
        share = spread([rows.flops / (each * peak * 1e9) for each in seconds])
    return {
        "name": contender.name,
        "kind": contender.kind,
        "workers": contender.workers,
        "precision": contender.precision if model else None,
        "rows": rows.rows,
        "seconds": spread(seconds),
        "texts_per_second": spread([rows.rows / each for each in seconds]),
        "tokens_per_second": spread([rows.tokens / each for each in seconds]) if model else None,
        "computed_tokens": round(median(run["tokens"] for run in runs)) if model else None,
        "padding_efficiency": sum(run["tokens"] for run in runs) / padded if padded else None,
        "share_of_peak": share,
        "cpu_seconds": spread([run["cpu_seconds"] for run in runs]),
        "worker_cpu_seconds": _spread_of(runs, "worker_cpu_seconds"),
        "first_vector_seconds": spread(waited) if waited else None,
        # Of another environment; the machine has this one's.
        "versions": firsts[0]["versions"] if contender.python else None,
        "worker_pss_mb": _megabytes(runs[-1]["workers"], "pss"),
        "worker_peak_rss_mb": _megabytes(runs[-1]["workers"], "peak_rss"),
    }


def compare(summaries: list[dict[str, Any]]) -> None:
    """Adds ``ratio_to_recipe`` to each summary: of the median speeds on the same rows."""
    recipe = next((each for each in summaries if each["name"] == RECIPE), None)
    for each in summaries:
        comparable = recipe is not None and each["precision"] is not None
        each["ratio_to_recipe"] = (
            each["texts_per_second"]["median"] / recipe["texts_per_second"]["median"]
            if comparable and recipe is not None
            else None
        )


def agreement(summaries: list[dict[str, Any]], vectors: dict[str, Any]) -> str | None:
    """Adds ``worst_cosine`` to each summary, and returns whose vectors they were compared with.

    A contender that makes other vectors than the first one is not faster but wrong.

    Args:
        summaries: Of all contenders.
        vectors: Name to the vectors of the first texts.
    """
    names = [each["name"] for each in summaries if vectors.get(each["name"]) is not None]
    for each in summaries:
        each["worst_cosine"] = None
        if each["name"] in names:
            expected, found = (_unit(vectors[name]) for name in (names[0], each["name"]))
            each["worst_cosine"] = round(float((expected * found).sum(axis=1).min()), 6)
    return names[0] if names else None


def _unit(vectors: Any) -> Any:  # noqa: ANN401  # nested lists to an array
    array = np.array(vectors, dtype=np.float64)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def _spread_of(runs: list[dict[str, Any]], name: str) -> dict[str, float] | None:
    values = [run[name] for run in runs if run[name] is not None]
    return spread(values) if values else None


def _megabytes(workers: list[dict[str, int]], name: str) -> list[int]:
    return [round(each[name] / 1e6) for each in workers if name in each]
