"""The charts of the page as options of Apache ECharts, which are JSON.

Colours are variables of the style sheet, so that one drawing serves the light, the dark and the
printed page. A point's ``tip`` is what ``page.js`` shows on it, as text.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from e5spark.page.amounts import count, duration, rate

Option = dict[str, Any]

COLORS = ("var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)", "var(--c5)", "var(--c6)")
_TEXT = {"color": "var(--muted)", "fontSize": 12}
_LINE = {"lineStyle": {"color": "var(--line)"}}


def speed(bins: Mapping[str, Any], unit: str) -> Option:
    """Returns a run's speed over time.

    Args:
        bins: ``seconds``, the width of a bin, ``last_seconds``, that of the last one, and the
            amounts in each bin, by unit.
        unit: ``rows`` or ``tokens``.
    """
    width, amounts = bins["seconds"], bins[unit]
    scale, name = (60, "minutes") if width * len(amounts) > 300 else (1, "seconds")
    data = []
    for number, amount in enumerate(amounts):
        seconds = bins["last_seconds"] if number == len(amounts) - 1 else width
        speed, begin = amount / max(seconds, 1e-9), number * width
        tip = f"{duration(begin)} to {duration(begin + seconds)}: {rate(speed)} {unit}/s"
        data.append({"value": [_short(begin / scale), _short(speed)], "tip": tip})
    end = (width * (len(amounts) - 1) + bins["last_seconds"]) / scale
    data.append({**data[-1], "value": [_short(end), data[-1]["value"][1]]})
    series = {
        "type": "line",
        "step": "end",
        "symbol": "none",
        "data": data,
        "lineStyle": {"width": 2, "color": COLORS[unit == "tokens"]},
        "areaStyle": {"color": COLORS[unit == "tokens"], "opacity": 0.16},
    }
    x = _axis(f"{name} since the first chunk began", max=_short(end))
    x["axisLabel"]["showMaxLabel"] = False  # which is seldom a round number
    return _option(x, _axis(f"{unit}/s"), [series], trigger="axis")


def token_lengths(edges: Sequence[int], counts: Sequence[int], limit: int) -> Option:
    """Returns the histogram of token lengths, on a logarithmic axis, with the limit as a line.

    Args:
        edges: The largest length of each bin but the last, which is open.
        counts: Texts in each bin.
        limit: The model's limit.
    """
    filled = [number for number, texts in enumerate(counts) if texts]
    first, last = max(filled[0] - 1, 0), min(filled[-1] + 1, len(counts) - 1)
    data = []
    for number in range(first, last + 1):
        over = number >= len(edges) or edges[number] > limit
        item = {
            "value": [_short(_center(edges, number)), counts[number]],
            "tip": f"{length_range(edges, number)} tokens: {count(counts[number])} texts",
            "itemStyle": {"color": "var(--bad)" if over else COLORS[1]},
        }
        data.append(item)
    # From the shortest text to the limit, which is on the chart even if all texts are short.
    right = max(math.log2(limit) + 0.5, _center(edges, last) + 0.25)
    left = min(_center(edges, first) - 0.25, math.log2(limit) - 3)
    line = {"xAxis": _short(math.log2(limit)), "label": {"formatter": f"limit {count(limit)}"}}
    series = {
        "type": "bar",
        "barCategoryGap": "12%",
        "data": data,
        "markLine": _mark_line(line, "var(--bad)"),
    }
    x = _axis("tokens, prompt included (logarithmic)", min=math.floor(left), max=_short(right))
    x |= {"interval": 1, "powers": True}
    x["axisLabel"]["showMaxLabel"] = False
    return _option(x, _axis("texts"), [series])


def length_range(edges: Sequence[int], number: int) -> str:
    """Returns the lengths of a bin in words, such as ``9 to 11`` or ``over 4,096``."""
    if number >= len(edges):
        return f"over {count(edges[-1])}"
    begin = edges[number - 1] + 1 if number else 1
    return count(begin) if begin == edges[number] else f"{count(begin)} to {count(edges[number])}"


def cosines(histogram: Mapping[str, Any], band: Sequence[float] | None) -> Option:
    """Returns the histogram of the cosines of random pairs.

    Args:
        histogram: ``edges``, ``counts``, ``pairs`` and ``mean``.
        band: The range of the checkpoint's mean; None if it is not known.
    """
    edges, counts, pairs = histogram["edges"], histogram["counts"], histogram["pairs"]
    data = [
        {
            "value": [_short((begin + end) / 2), _short(100 * number / pairs)],
            "tip": f"{begin:.2f} to {end:.2f}: {100 * number / pairs:.1f} % of the pairs",
        }
        for begin, end, number in zip(edges, edges[1:], counts, strict=False)
    ]
    mean = histogram["mean"]
    line = {"xAxis": mean, "label": {"formatter": f"mean {mean:.2f}"}}
    series: dict[str, Any] = {
        "type": "bar",
        "barCategoryGap": "12%",
        "data": data,
        "itemStyle": {"color": COLORS[0]},
        "markLine": _mark_line(line, "var(--ink)"),
    }
    if band is not None:
        series["markArea"] = {
            "silent": True,
            "itemStyle": {"color": "var(--c2)", "opacity": 0.13},
            "data": [[{"xAxis": max(band[0], edges[0])}, {"xAxis": band[1]}]],
        }
    x = _axis("cosine", min=edges[0], max=1)
    return _option(x, _axis("% of pairs"), [series])


def vector_map(
    points: Mapping[str, Any], examples: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> Option:
    """Returns the map of a sample of vectors, with the examples and their neighbours in colour.

    Args:
        points: ``rows``, ``x`` and ``y``.
        examples: ``row`` and ``neighbours`` of each example.
        names: What a row of the sample is called, by its number.
    """
    places = dict(zip(points["rows"], zip(points["x"], points["y"], strict=True), strict=True))
    cloud = {
        "type": "scatter",
        "symbolSize": 5 if len(places) > 300 else 7,
        "itemStyle": {"color": "var(--muted)", "opacity": 0.35},
        "data": [{"value": place, "tip": names[row]} for row, place in places.items()],
    }
    series: list[Option] = [cloud]
    for number, example in enumerate(examples):
        color = COLORS[number % len(COLORS)]
        start = places[example["row"]]
        path = [place for near in example["neighbours"] for place in (start, places[near["row"]])]
        nearest = [
            {"value": places[near["row"]], "tip": names[near["row"]]}
            for near in example["neighbours"]
        ]
        letter = {"show": True, "formatter": "ABCDEFGH"[number], "color": "var(--card)"}
        series += [
            {
                "type": "line",
                "data": path,
                "symbol": "none",
                "silent": True,
                "lineStyle": {"color": color, "width": 1.5, "opacity": 0.7},
            },
            {
                "type": "scatter",
                "symbolSize": 8,
                "itemStyle": {"color": color},
                "data": nearest,
                "z": 3,
            },
            {
                "type": "scatter",
                "symbolSize": 20,
                "z": 4,
                "itemStyle": {"color": color},
                "label": {**letter, "fontWeight": "bold", "fontSize": 12, "textBorderWidth": 0},
                "data": [{"value": start, "tip": names[example["row"]]}],
            },
        ]
    first, second = (f"{100 * part:.0f} % of the variance" for part in points["variance"])
    x, y = _axis(f"first component, {first}"), _axis(f"second component, {second}")
    for axis in (x, y):
        axis |= {"scale": True, "axisLabel": {"show": False}, "axisTick": {"show": False}}
    option = _option(x, y, series)
    option["grid"] = {"left": 30, "right": 12, "top": 12, "bottom": 30}
    x["nameGap"] = 14
    y |= {"nameLocation": "middle", "nameGap": 14, "nameTextStyle": _TEXT}
    return option


def _option(x: Option, y: Option, series: list[Option], *, trigger: str = "item") -> Option:
    x |= {"splitLine": {"show": False}, "axisLine": {"show": True, **_LINE}}
    x |= {"nameLocation": "middle", "nameGap": 28}
    y |= {"splitLine": _LINE, "axisLine": {"show": False}, "nameGap": 12}
    y["nameTextStyle"] = {**_TEXT, "align": "left", "padding": [0, 0, 0, -36]}
    for one in series:
        one |= {"emphasis": {"disabled": True}, "clip": one["type"] != "scatter"}
    return {
        "animation": False,
        "textStyle": {"fontFamily": "inherit"},
        "grid": {"left": 52, "right": 18, "top": 34, "bottom": 46},
        "tooltip": {"trigger": trigger, "confine": True, "axisPointer": {"animation": False}},
        "xAxis": x,
        "yAxis": y,
        "series": series,
    }


def _axis(name: str, **options: float) -> Option:
    return {
        "type": "value",
        "name": name,
        "nameTextStyle": _TEXT,
        "axisLabel": {**_TEXT, "hideOverlap": True},
        "axisTick": {"show": False},
        **options,
    }


def _mark_line(line: Option, color: str) -> Option:
    line["label"] |= {"color": color, "fontSize": 12, "position": "end", "textBorderWidth": 0}
    return {
        "silent": True,
        "symbol": "none",
        "lineStyle": {"color": color, "width": 1.5, "type": "dashed"},
        "data": [line],
    }


def _center(edges: Sequence[int], number: int) -> float:
    """The place of a bin on the axis: all bins but the first have the same width, a quarter."""
    return math.log2(edges[0]) + (number - 0.5) / 4


def _short(value: float) -> float:
    return float(f"{value:.5g}")
