"""``e5spark embed``: the job."""

import argparse
import logging
from pathlib import Path
from typing import Any

from e5spark.cli import dry_run, summary
from e5spark.cli.failure import failed
from e5spark.cli.overrides import add_overrides
from e5spark.errors import GateError
from e5spark.job import job_file
from e5spark.job import run as job
from e5spark.job.report import check_gates
from e5spark.job.session import session
from e5spark.job.terminal import terminal

log = logging.getLogger("e5spark")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    parser.add_argument("config", type=Path, help="the job file; e5spark init writes one")
    add_overrides(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what the run would do and take, from a sample; nothing is written",
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the command and returns the document of its last line."""
    config = job_file.load(options.config, options.set)
    if options.dry_run:
        return dry_run.run(config)
    console = terminal()
    if console is not None:
        console.print(summary.title(config))
    with session(config) as spark:
        report = job.run(spark, config)
    if console is not None:
        console.print(summary.table(report))
    else:
        for sentence in report.sentences():
            log.info("%s", sentence)
    try:
        check_gates(report, config.run.max_error_rate)
    except GateError as error:  # the document still says what was written
        return {**report.as_dict(), **failed(error)}
    return report.as_dict()
