"""``e5spark doctor``: what a run of a job would meet on this session and its executors."""

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from e5spark.cli.failure import failed
from e5spark.cli.overrides import add_overrides
from e5spark.errors import ConfigError, E5SparkError
from e5spark.job import job_file
from e5spark.job.doctor.examination import Examination, job_words, without_session
from e5spark.job.doctor.examine import examine
from e5spark.job.doctor.finding import Finding, of_message
from e5spark.job.session import session
from e5spark.names import redacted

_WIDTH = 11
_GB = 1e9
_SHOWN_ISA = ("amx_bf16", "avx512_bf16", "bf16", "avx512_vnni", "avx_vnni", "avx512f", "avx2")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    parser.add_argument("config", type=Path, help="the job file")
    parser.add_argument(
        "--patience",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long to wait for executors (60)",
    )
    add_overrides(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the command and returns the document of its last line."""
    if not 0 < options.patience < math.inf:
        raise ConfigError(
            f"--patience is {options.patience:g}; it must be a positive number of seconds."
        )
    result = _examined(options)
    sys.stdout.write(text(result))
    if not result.errors:
        return result.as_dict()
    count = len(result.errors)
    names = ", ".join(dict.fromkeys(finding.check for finding in result.errors))
    summary = f"{count} {'thing' if count == 1 else 'things'} must be fixed before a run: {names}."
    return {**result.as_dict(), **failed(ConfigError(summary))}


def _examined(options: argparse.Namespace) -> Examination:
    job: dict[str, str] = {}
    try:
        config = job_file.load(options.config, options.set)
        job = job_words(config)
        with session(config) as spark:
            return examine(spark, config, patience=options.patience)
    except E5SparkError as error:
        return without_session(job, of_message("session" if job else "job", "driver", str(error)))


def text(result: Examination) -> str:
    """Returns an examination to read."""
    lines = []
    for heading, sentences in _paragraphs(result):
        for number, sentence in enumerate(sentences):
            lines.append(f"{'' if number else heading:<{_WIDTH}}{sentence}".rstrip())
    return redacted("\n".join([*lines, *_table(result), *_findings(result.findings), ""]))


def _paragraphs(result: Examination) -> Iterator[tuple[str, list[str]]]:
    for name, value in result.job.items():
        yield name, [value]
    if result.plan is not None:
        facts = result.as_dict()["model"]
        yield (
            "",
            [f"{facts['dim']} dimensions in {facts['precision']}, weights {facts['weights'][:12]}"],
        )
    driver, session = result.driver, result.session
    versions = driver["versions"]
    yield (
        "driver",
        [
            f"{driver['host']}: Python {driver['python']}, e5spark {versions['e5spark']}, "
            f"pyarrow {versions['pyarrow'] or '-'}"
        ],
    )
    if session:
        known = {
            name: session[name]
            for name in ("java", "scala", "hadoop", "delta")
            if session.get(name)
        }
        others = ", ".join(f"{name.capitalize()} {version}" for name, version in known.items())
        yield (
            "session",
            [f"Spark {session['spark']} on {session.get('spark.master', '?')}; {others}"],
        )
    if result.survey is not None:
        survey = result.survey
        registered = "an unknown number" if survey.registered is None else survey.registered
        yield (
            "executors",
            [
                f"{len(survey.reports)} of {registered} answered; "
                f"{survey.slots} {'task runs' if survey.slots == 1 else 'tasks run'} at once"
            ],
        )
    yield "unchecked", list(result.unchecked)


def _table(result: Examination) -> list[str]:
    reports = () if result.survey is None else result.survey.reports
    if not reports:
        return []
    rows = [_cells(report) for report in reports]
    names = list(rows[0])
    widths = [max(len(name), *(len(row[name]) for row in rows)) for name in names]
    cells = [names, *([row[name] for name in names] for row in rows)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
    return ["", *lines]


def _cells(report: Mapping[str, Any]) -> dict[str, str]:
    versions = report["versions"]
    isa = next((name for name in _SHOWN_ISA if name in report.get("isa", ())), "-")
    resident = [item["bytes"] for item in report.get("memory", ()) if item["kind"] == "resident"]
    needs = report.get("needs_bytes", {}).get("resident")
    return {
        "executor": str(report["executor"] or "?"),
        "host": report["host"],
        "python": report["python"],
        "e5spark": versions["e5spark"] or "-",
        "pyarrow": versions["pyarrow"] or "-",
        "engine": report.get("engine", "-"),
        "precision": report.get("precision", "-"),
        "device": report.get("device", "-"),
        "cpu": isa,
        "threads": f"{report.get('threads') or '-'} of {report.get('cpus') or '-'}",
        "workers": str(report.get("workers", 1)),
        "model": (report.get("model") or {}).get("weights", "-")[:8],
        "needs": f"{needs / _GB:.1f} GB" if needs else "-",
        "limit": f"{min(resident) / _GB:.1f} GB" if resident else "-",
    }


def _findings(findings: Sequence[Finding]) -> list[str]:
    if not findings:
        return ["", "Everything that was checked fits."]
    lines = []
    for finding in findings:
        heading = "FIX " if finding.level == "error" else "note"
        lines += ["", f"{heading} {finding.check} ({finding.where})"]
        lines += [
            f"     {sentence}"
            for sentence in (finding.found, finding.needed, finding.fix)
            if sentence
        ]
    return lines
