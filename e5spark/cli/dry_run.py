"""``e5spark embed --dry-run``: what a run would do and take, as a page to read."""

import sys
from collections.abc import Iterator
from typing import Any

from e5spark.cli.status import size
from e5spark.job.config import JobConfig
from e5spark.job.dry_run import DryRun, dry_run
from e5spark.job.session import session
from e5spark.names import redacted

_WIDTH = 13


def run(config: JobConfig) -> dict[str, Any]:
    """Runs the command and returns the document of its last line."""
    with session(config) as spark:
        result = dry_run(spark, config)
    sys.stdout.write(text(result))
    return result.as_dict()


def text(result: DryRun) -> str:
    """Returns a dry run to read; each line has a heading or continues the line above."""
    lines = []
    for heading, sentences in _paragraphs(result):
        for number, sentence in enumerate(sentences):
            lines.append(f"{'' if number else heading:<{_WIDTH}}{sentence}".rstrip())
    return redacted("\n".join([*lines, ""]))


def _paragraphs(result: DryRun) -> Iterator[tuple[str, list[str]]]:
    document, rows = result.as_dict(), result.estimate.rows
    yield "output", [f"{result.output}: nothing was written"]
    yield "rows", _rows(document)
    if not rows.to_embed:
        yield "to embed", ["nothing"]
    elif document["sampled_rows"]:
        yield "texts", _texts(document)
        yield "model", _model(result, document)
    yield "time", _time(document)
    yield "cost", _cost(document)
    if rows.to_embed or rows.replaced:
        yield "bytes", _bytes(document)
    yield "notes", list(result.notes)


def _rows(document: dict[str, Any]) -> list[str]:
    kinds = ("new", "changed", "refreshed", "unchanged", "deleted", "recovered", "duplicates")
    counts = [f"{document[kind]:,} {kind}" for kind in kinds if document[kind]]
    return [
        f"{document['rows_in']:,} in the input: {', '.join(counts) or 'none'}",
        f"{document['to_embed']:,} to embed",
    ]


def _texts(document: dict[str, Any]) -> list[str]:
    tokens, truncated = document["tokens"], document["truncated_share"]
    lengths = document["tokens_per_text"]
    shares = document["status_shares"]
    others = [f"{100 * value:.2g} % {name}" for name, value in shares.items() if name != "ok"]
    exact = document["sampled_rows"] >= document["to_embed"]
    lines = [
        f"{document['texts']:,}, of {_number(tokens['value'])} tokens"
        + ("" if exact else f" ({_number(tokens['low'])} to {_number(tokens['high'])})")
    ]
    if lengths:
        lines.append(
            f"median {lengths['median']:,} tokens, 95 % up to {lengths['p95']:,}, longest "
            f"{lengths['max']:,}"
        )
    lines.append(
        f"{100 * truncated['value']:.2g} % truncated"
        + ("" if exact else f" ({100 * truncated['low']:.2g} to {100 * truncated['high']:.2g} %)")
    )
    if others:
        lines.append(", ".join(others))
    lines.append(
        "every row was counted"
        if exact
        else f"from {document['sampled_rows']:,} rows at random; 95 % intervals"
    )
    return lines


def _model(result: DryRun, document: dict[str, Any]) -> list[str]:
    speed = document["rows_per_second"]
    return [
        f"{redacted(result.model)}, {result.dim} components, {result.engine} in {result.precision}",
        f"{speed:,} rows/s in a task" if speed else "nothing was encoded",
    ]


def _time(document: dict[str, Any]) -> list[str]:
    executors, tasks = document["executors"], document["tasks_at_once"]
    steps = document["seconds_by_step"]
    names = {"compare": "compare", "start": "start", "work_list": "work list"}
    parts = [f"{names.get(step, step)} {_clock(value)}" for step, value in steps.items() if value]
    return [
        f"{_clock(document['seconds'])} on {executors:,} executor{'s' * (executors > 1)} with "
        f"{document['cores']:,} cores, {tasks:,} task{'s' * (tasks > 1)} at a time",
        ", ".join(parts),
    ]


def _cost(document: dict[str, Any]) -> list[str]:
    hours = f"{document['executor_hours']:,.4g} executor hours"
    if document["cost"] is None:
        return [f"{hours}; set run.price_per_hour for a price"]
    return [f"{document['cost']:,.2f}: {hours} at {document['price_per_hour']:,}"]


def _bytes(document: dict[str, Any]) -> list[str]:
    lines = [
        f"{size(document['output_bytes'])} of rows with vectors; "
        f"{size(document['temporary_bytes'])} of a work list, which the run deletes"
    ]
    if document["rewritten_bytes"]:
        lines.append(f"{size(document['rewritten_bytes'])} of files that have other rows")
    return lines


def _number(value: float) -> str:
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= unit:
            return f"{value / unit:.4g} {name}"
    return f"{value:,.0f}"


def _clock(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h"
