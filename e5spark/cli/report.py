"""``e5spark report``: the report of a run, from the state directory of a job's output."""

import argparse
import sys
from pathlib import Path
from typing import Any

from e5spark.cli.overrides import add_overrides
from e5spark.job import job_file, stored_report
from e5spark.job.session import session


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    parser.add_argument("config", type=Path, help="the job file")
    parser.add_argument("--run", type=int, help="the number of the run; by default the last")
    parser.add_argument("--to", type=Path, default=Path(), help="a directory; by default this one")
    add_overrides(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the command and returns the document of its last line."""
    config = job_file.load(options.config, options.set)
    with session(config) as spark:
        epoch, document = stored_report.stored(spark, config, epoch=options.run)
    paths = stored_report.save(document, options.to)
    sys.stdout.write("".join(f"{path}\n" for path in paths))
    return {"run": epoch, "files": [str(path) for path in paths]}
