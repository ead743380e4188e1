"""The first section of the page: whether the run passed, gate by gate."""

from collections.abc import Mapping
from typing import Any

from e5spark.page.amounts import count, figure
from e5spark.page.markup import Markup, element, joined, table

_LABELS = {
    "not_finite": "vectors with NaN or infinity",
    "zeros": "vectors of length 0",
    "norm_error": "largest distance of a length from 1",
    "equal_share": "share of texts whose vector is another text's",
    "truncated_share": "share of truncated texts",
    "pair_cosine": "mean cosine of random pairs",
    "error_share": "share of texts that failed",
}
_CANARIES = {
    "matched": ("good", "The canaries have the vectors that they had when the table was new."),
    "added": ("good", "The canaries were embedded for the first time; later runs compare."),
    "none": ("warn", "None of the canaries could be embedded."),
    "not_needed": ("idle", "No row had to be embedded, so the canaries were not needed."),
    "off": ("idle", "Canaries are switched off (quality.canaries = false)."),
}


def verdict(document: Mapping[str, Any]) -> Markup:
    """Returns the verdict on the whole run, in a word."""
    if document["problems"]:
        return pill("bad", "a gate failed")
    return pill("warn", "passed with a warning") if document["warnings"] else pill("good", "passed")


def pill(kind: str, text: str) -> Markup:
    """Returns a short text on a coloured ground."""
    return element("span", text, class_=f"pill {kind}")


def problems(document: Mapping[str, Any]) -> Markup:
    """Returns what is wrong and what to do about it, in the words of the log."""
    return joined(
        *(element("p", text, class_="problem") for text in document["problems"]),
        *(element("p", text, class_="problem warning") for text in document["warnings"]),
    )


def section(document: Mapping[str, Any]) -> Markup:
    """Returns the section with the gates, the drift and the canaries."""
    quality = document["report"]["quality"]
    gates = [*quality["gates"], {**document["errors"], "figure": "error_share"}]
    parts = [
        element("h2", "Checks"),
        element(
            "p",
            "Gates on all vectors that this run wrote. A run that fails one ends with exit code 4, "
            "after its rows are safe. Shares and cosines are judged from quality.min_vectors "
            "vectors on.",
            class_="note",
        ),
        table(
            ("gate", "value", "allowed", "verdict"),
            [_row(gate) for gate in gates],
            caption="Gates",
        ),
    ]
    if quality["drift"]:
        rows = [_row(gate) for gate in quality["drift"]]
        parts += [
            element("h3", "Drift"),
            element("p", "Figures that must stay near those of the last run.", class_="note"),
            table(("figure", "value", "allowed", "verdict"), rows, caption="Drift"),
        ]
    kind, sentence = _CANARIES.get(quality["canaries"], ("idle", quality["canaries"]))
    parts += [
        element("h3", "Canaries"),
        element("p", pill(kind, quality["canaries"].replace("_", " ")), " ", sentence),
    ]
    return element("section", *parts, class_="wide", id="checks")


def _row(gate: Mapping[str, Any]) -> tuple[str, ...]:
    if gate["value"] is None:
        mark = pill("idle", "not judged")
    else:
        mark = pill("good", "passed") if gate["passed"] else pill("bad", "failed")
    name = gate["figure"]
    return _LABELS.get(name, name), figure(gate["value"]), _allowed(gate), mark


def _allowed(gate: Mapping[str, Any]) -> str:
    lowest, highest = gate.get("lowest"), gate.get("highest")
    if lowest is None:
        return "any" if highest is None else f"up to {_bound(highest)}"
    return f"{_bound(lowest)} and more" if highest is None else f"{lowest:.3g} to {highest:.3g}"


def _bound(value: float) -> str:
    return count(value) if value == int(value) else figure(value)
