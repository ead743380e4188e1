"""The sections of the page: each from the document to HTML, and an empty one if it has no data."""

from collections.abc import Mapping, Sequence
from typing import Any

from e5spark.page.amounts import count, duration, rate, share
from e5spark.page.charts import Option, length_range, speed, token_lengths
from e5spark.page.checks import verdict
from e5spark.page.markup import Markup, element, joined, table

Charts = dict[str, Option]


def header(document: Mapping[str, Any]) -> Markup:
    """Returns the heading: what was written, when, and whether it passed."""
    report = document["report"]
    moment = document["ended_at"].replace("T", " ").replace("+00:00", " UTC")
    line = f"Run {document['epoch']}, ended {moment}, {duration(report['seconds'])}. "
    return element(
        "header",
        element("h1", document["output"].rstrip("/").rpartition("/")[2] or document["output"]),
        element("p", line, report["model"], ". ", verdict(document), class_="sub"),
    )


def tiles(document: Mapping[str, Any]) -> Markup:
    """Returns the figures that are looked at first."""
    report = document["report"]
    figures = {
        "rows read": count(report["rows_in"]),
        "rows embedded": count(report["embedded"]),
        "texts per second": rate(report["texts_per_second"]),
        "tokens per second": rate(report["tokens_per_second"]),
        "texts truncated": count(report["truncated"]),
        "texts failed": count(report["error"]),
    }
    items = (
        element("li", element("b", value), element("span", name)) for name, value in figures.items()
    )
    return element("ul", *items, class_="tiles wide", aria_label="Key figures")


def rows(document: Mapping[str, Any]) -> Markup:
    """Returns the account of the rows, which reconciles."""
    report = document["report"]
    parts = {
        "embedded": (report["embedded"], "k1"),
        "refreshed: other columns have changed": (report["refreshed"], "k2"),
        "skipped: nothing has changed": (report["skipped"], "k4"),
    }
    others = {
        "deleted from the table": report["deleted"],
        "recovered from a run that was killed": report["recovered"],
        "left out: a duplicate id": report["duplicates"],
    }
    terms = " + ".join(count(number) for number, _ in parts.values())
    sums = report["embedded"] + report["refreshed"] + report["skipped"]
    sign = "=" if sums == report["rows_in"] else "≠"
    return element(
        "section",
        element("h2", "Rows"),
        _bar(parts, report["rows_in"]),
        element(
            "p",
            f"{count(report['rows_in'])} rows read {sign} {terms}. "
            f"{count(report['rows'])} rows were written.",
        ),
        *(
            element("p", f"{count(number)} {name}.", class_="note")
            for name, number in others.items()
            if number
        ),
        id="rows",
    )


def statuses(document: Mapping[str, Any]) -> Markup:
    """Returns the statuses of the texts, and what was lost of them."""
    report = document["report"]
    names = {"ok": "k1", "null_text": "k4", "empty_text": "k3", "error": "k5"}
    texts = sum(report[name] for name in names)
    if not texts:
        return Markup("")
    parts = {name: (report[name], key) for name, key in names.items()}
    columns = len(document["columns"])
    note = f"{count(texts)} texts in {count(report['embedded'])} rows, {columns} columns each. "
    lost = (
        f"{count(report['truncated'])} were truncated, which lost "
        f"{share(report['lost_tokens'], report['tokens'])} of {count(report['tokens'])} tokens. "
        if report["truncated"]
        else f"None was truncated; they have {count(report['tokens'])} tokens. "
    )
    if report["already_prompted"]:
        lost += f"{count(report['already_prompted'])} already began with a prompt."
    return element(
        "section",
        element("h2", "Texts"),
        _bar(parts, texts),
        element("p", note if columns > 1 else "", lost),
        id="texts",
    )


def timeline(document: Mapping[str, Any], charts: Charts) -> Markup:
    """Returns the speed over time; with fewer than three chunks, in words."""
    bins = document["speed"]
    if not bins:
        return Markup("")
    lengths = bins["chunk_seconds"]
    chunks = (
        f"{count(bins['chunks'])} chunks took {duration(lengths['lowest'])} to "
        f"{duration(lengths['highest'])}, {duration(lengths['mean'])} on average"
        if bins["chunks"] > 1
        else f"The only chunk took {duration(lengths['mean'])}"
    )
    report = document["report"]
    total = f"{count(report['embedded'])} rows and {count(report['tokens'])} tokens"
    note = f"{chunks}, from its Spark job to its commit: {total}."
    parts = [element("h2", "Speed over time"), element("p", note, class_="note")]
    if bins["chunks"] > 2:
        parts.append(
            element(
                "div", *(_speed(bins, unit, charts) for unit in ("rows", "tokens")), class_="pair"
            )
        )
        begins = [number * bins["seconds"] for number in range(len(bins["rows"]))]
        cells = zip(begins, bins["rows"], bins["tokens"], strict=True)
        data = [(duration(begin), count(rows), count(tokens)) for begin, rows, tokens in cells]
        parts.append(
            data_table(("from", "rows", "tokens"), data, caption="Rows and tokens over time")
        )
    return element("section", *parts, class_="wide", id="speed")


def lengths(document: Mapping[str, Any], charts: Charts) -> Markup:
    """Returns the histogram of token lengths."""
    tokens, report = document["tokens"], document["report"]
    if not tokens or not sum(tokens["counts"]):
        return Markup("")
    edges, counts, limit = tokens["edges"], tokens["counts"], tokens["limit"]
    charts["chart-lengths"] = token_lengths(edges, counts, limit)
    texts = sum(counts)
    over = sum(number for edge, number in zip(edges, counts, strict=False) if edge > limit)
    over += counts[-1]
    fates = {"truncate": "are truncated", "mean": "get the mean of their windows' vectors"}
    fate = fates.get(document["model"]["long_text"], "are split into rows")
    unit = "windows" if document["model"]["long_text"] == "split" else "texts"
    mean = report["tokens"] / max(texts, 1)
    note = (
        f"All {count(texts)} {unit} that this run embedded, {rate(mean)} tokens on average. The "
        f"model reads up to {count(limit)}; longer texts {fate}: {count(over)} "
        f"({share(over, texts)}) here."
    )
    data = [
        (length_range(edges, number), count(value), share(value, texts))
        for number, value in enumerate(counts)
        if value
    ]
    return element(
        "section",
        element("h2", "Token lengths"),
        element("p", note, class_="note"),
        chart("chart-lengths", f"Histogram of token lengths. {note}"),
        data_table(("tokens", unit, "share"), data, caption="Token lengths"),
        id="tokens",
    )


def setup(document: Mapping[str, Any]) -> Markup:
    """Returns what ran with what."""
    report, model = document["report"], document["model"]
    facts = {
        "output": document["output"],
        "model": report["model"],
        "vectors": f"{', '.join(document['columns'])}: {report['dim']} dimensions, "
        f"{model['output_type']}",
        "engine": "the first that an executor can run: OpenVINO on CPUs, or torch"
        if model["engine"] == "auto"
        else model["engine"],
        "device": "the task's GPU if it has one, otherwise the CPU"
        if model["device"] == "auto"
        else model["device"],
        "precision": model["precision"],
        "pooling": f"{model['pooling']}{', normalised' if model['normalize'] else ''}",
        "limit": f"{count(model['max_tokens'])} tokens; long texts: {model['long_text']}",
        "prompts": ", ".join(f"{role} {text!r}" for role, text in model["prompts"].items()),
        "fingerprint": element("code", report["fingerprint"]),
        "versions": ", ".join(f"{name} {number}" for name, number in report["versions"].items()),
        "started": f"{document['started_at']}, ended {document['ended_at']}",
    }
    settings = [
        (f"{section}.{key}", str(value))
        for section, values in document["settings"].items()
        for key, value in values.items()
    ]
    return element(
        "section",
        element("h2", "What ran with what"),
        _facts(facts),
        element(
            "details",
            element("summary", "Settings of the job file"),
            table(("key", "value"), settings, caption="Settings of the job file"),
        ),
        class_="wide",
        id="setup",
    )


def chart(id: str, summary: str, *, tall: bool = False) -> Markup:
    """Returns the place of a chart, which says in words what it shows."""
    kind = "chart tall" if tall else "chart"
    return element("div", class_=kind, id=id, role="img", aria_label=summary)


def data_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, caption: str) -> Markup:
    """Returns the data of a chart as a table, closed where there is JavaScript to close it."""
    summary = element("summary", "The data as a table")
    content = table(header, rows, caption=caption)
    return element("details", summary, content, class_="data", open="")


def _speed(bins: Mapping[str, Any], unit: str, charts: Charts) -> Markup:
    charts[f"chart-{unit}"] = speed(bins, unit)
    widths = [bins["seconds"]] * (len(bins[unit]) - 1) + [bins["last_seconds"]]
    speeds = [amount / max(width, 1e-9) for amount, width in zip(bins[unit], widths, strict=True)]
    summary = f"From {rate(min(speeds))} to {rate(max(speeds))} {unit} per second, over time."
    return chart(f"chart-{unit}", summary)


def _bar(parts: Mapping[str, tuple[int, str]], whole: int) -> Markup:
    """Returns amounts as a divided bar, and its legend, which is the table of them."""
    pieces = [
        element("i", class_=key, style=f"flex: {number} 1 0")
        for number, key in parts.values()
        if number
    ]
    items = [
        element(
            "li",
            element("i", class_=key),
            element("span", name.replace("_", " ")),
            element("span", count(number)),
            element("span", share(number, whole)),
        )
        for name, (number, key) in parts.items()
    ]
    return joined(
        element("div", *pieces, class_="bar", aria_hidden="true"),
        element("ul", *items, class_="legend"),
    )


def _facts(facts: Mapping[str, str]) -> Markup:
    pairs: Sequence[Markup] = [
        joined(element("dt", name), element("dd", value)) for name, value in facts.items() if value
    ]
    return element("dl", *pairs)
