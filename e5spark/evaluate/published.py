"""Figures that others have published, each with the protocol that it belongs to.

Which protocol a figure belongs to matters more than its fourth digit: with and without E5's
prompts, e5-small-v2 has 0.8594 and 0.8492 on STSBenchmark.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A published figure.

    Attributes:
        value: The metric.
        source: Who published it.
        protocol: How its vectors were computed, as far as is known: ``prompts`` (``e5`` or
            ``none``), ``normalize``, ``precision``, ``max_tokens``.
        differences: The parts of the protocol in which the judged vectors differ, with the figure's
            value; empty if they agree in all that is known.
    """

    value: float
    source: str
    protocol: Mapping[str, Any]
    differences: Mapping[str, Any]


def protocol(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns how vectors were computed, from the parts of their fingerprint; {} from none."""
    recipe = parts.get("recipe")
    if recipe is None:
        return {}
    return {
        "prompts": "e5" if any(recipe["prompts"].values()) else "none",
        "normalize": recipe["normalize"],
        "precision": parts["precision"],
        "max_tokens": recipe["max_tokens"],
    }


def figures(model: str, task: str, metric: str, judged: Mapping[str, Any]) -> list[Figure]:
    """Returns the published figures of a checkpoint, those of the nearest protocol first.

    Args:
        model: The checkpoint's name.
        task: The task's name, in MTEB's spelling.
        metric: The metric.
        judged: The protocol of the judged vectors.
    """
    result = []
    for group in _groups():
        value = group["figures"].get(model, {}).get(task, {}).get(metric)
        if value is None:
            continue
        differences = {
            key: part
            for key, part in group["protocol"].items()
            if key in judged and judged[key] != part
        }
        result.append(
            Figure(
                value=value,
                source=group["source"],
                protocol=group["protocol"],
                differences=differences,
            )
        )
    return sorted(result, key=_distance)


def _distance(figure: Figure) -> tuple[int, int]:
    """Precision last: it costs the third digit at most, prompts and normalisation the second."""
    return len({*figure.differences} - {"precision"}), len(figure.differences)


@cache
def _groups() -> list[dict[str, Any]]:
    text = files("e5spark.evaluate").joinpath("published.json").read_text("utf-8")
    groups: list[dict[str, Any]] = json.loads(text)
    return groups
