"""``e5spark status``: what a job's output holds, and how it came about."""

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from e5spark.cli.failure import failed
from e5spark.cli.overrides import add_overrides
from e5spark.errors import ConflictError
from e5spark.job import job_file
from e5spark.job.session import session
from e5spark.job.status import Status, status
from e5spark.names import redacted
from e5spark.tables.ledger.records import RunRecord

_WIDTH = 13
# Of a run, in one line; the document has all.
_COUNTS = ("rows_in", "embedded", "refreshed", "skipped", "deleted", "recovered", "error")
_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    parser.add_argument("config", type=Path, help="the job file")
    add_overrides(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the command and returns the document of its last line."""
    config = job_file.load(options.config, options.set)
    with session(config) as spark:
        result = status(spark, config)
    sys.stdout.write(text(result))
    if result.problems:
        return {**result.as_dict(), **failed(ConflictError(" ".join(result.problems)))}
    return result.as_dict()


def text(result: Status) -> str:
    """Returns a status to read; each line has a heading or continues the line above."""
    lines = []
    for heading, sentences in _paragraphs(result):
        for number, sentence in enumerate(sentences):
            lines.append(f"{'' if number else heading:<{_WIDTH}}{sentence}".rstrip())
    return redacted("\n".join([*lines, ""]))


def _paragraphs(result: Status) -> Iterator[tuple[str, list[str]]]:
    document, state = result.as_dict(), result.state
    yield "output", [f"{result.output} ({result.kind})"]
    if state is None or not state.has_begun:
        yield "", ["It does not exist yet: no run has begun to write it."]
    else:
        if document["vectors"]:
            yield "vectors", _vectors(document["vectors"])
        if result.rows is not None:
            yield "rows", _rows(result.rows, result.statuses)
        if result.size is not None:
            yield "files", [f"{result.size.files:,}, {size(result.size.bytes)}"]
        yield "up to date", [result.up_to_date_at or "never: no run has finished"]
        yield "runs", _runs(state.runs, state.commits) or ["no record of a run"]
        yield "pending", _pending(document["pending"])
        yield "lock", ["free" if state.holder is None else state.holder.sentence]
    yield "problems", list(result.problems)


def _vectors(vectors: Mapping[str, Any]) -> list[str]:
    created = vectors["created_with"]
    key = f"one row for each {vectors['id']!r}" if vectors["id"] else "rows without ids"
    return [
        f"{', '.join(vectors['columns'])} of {vectors['model'] or 'an unnamed model'}; {key}",
        *vectors["fingerprint_in_words"],
        f"fingerprint {vectors['fingerprint']}",
        f"created with e5spark {created.get('e5spark')}, Spark {created.get('spark')}",
    ]


def _rows(rows: int, statuses: Mapping[str, Mapping[str, int]]) -> list[str]:
    lines = [f"{rows:,}"]
    for vector, counts in statuses.items():
        parts = [f"{count:,} {name}" for name, count in counts.items() if count]
        lines.append(f"{vector}: {', '.join(parts) or 'none'}")
    return lines


def _runs(runs: tuple[RunRecord, ...], commits: Mapping[int, int]) -> list[str]:
    """The latest runs, newest first; those that left no record are known by their commits."""
    recorded = {run.epoch: run for run in runs}
    lines = []
    for epoch in sorted({*recorded, *commits}, reverse=True):
        made = f"{commits.get(epoch, 0):,} commits"
        run = recorded.get(epoch)
        if run is None:
            lines.append(f"{epoch}: {made}; it left no record, as a run that was killed")
        elif run.outcome == "failed":
            lines.append(
                f"{epoch}: {run.command} from {run.started_at} to {run.ended_at}, failed, {made}: "
                f"{run.error}{': ' if run.message else ''}{run.message}"
            )
        else:
            shown = {name: run.counts.get(name) for name in _COUNTS}
            counts = [f"{count:,} {name}" for name, count in shown.items() if count]
            lines.append(
                f"{epoch}: {run.command} from {run.started_at} to {run.ended_at}, done, "
                f"{', '.join([made, *counts])}"
            )
    return lines


def _pending(pending: Mapping[str, int]) -> list[str]:
    lines = []
    if pending["records"]:
        lines.append(
            f"{pending['records']:,} records of {pending['rows']:,} embedded rows, which are not "
            "visible yet; if no run is working, the next one makes them visible"
        )
    if pending["lost"]:
        lines.append(f"{pending['lost']:,} records that came too late; the next run removes them")
    if pending["staged"]:
        lines.append(
            f"{pending['staged']:,} chunks that are staged and not recorded; if no run is working, "
            "the next one removes them"
        )
    return lines or ["nothing"]


def size(number: float) -> str:
    """Returns a size in the largest unit in which it is at least 1."""
    for unit in _UNITS[:-1]:
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == _UNITS[0] else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} {_UNITS[-1]}"
