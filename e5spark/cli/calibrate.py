"""``e5spark calibrate``: the ranges of int8 and uint8 vectors."""

import argparse
import logging
from pathlib import Path
from typing import Any

from e5spark.cli.overrides import add_overrides
from e5spark.errors import ConflictError
from e5spark.job import job_file
from e5spark.job import run as job
from e5spark.job.session import session

log = logging.getLogger("e5spark")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    parser.add_argument("config", type=Path, help="the job file of the vectors")
    parser.add_argument("--to", type=Path, required=True, help="the file to write")
    parser.add_argument("--sample", type=int, default=10_000, help="rows of the sample (10000)")
    add_overrides(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the command and returns the document of its last line."""
    if options.to.exists():
        raise ConflictError(
            f"{options.to} already exists and was not overwritten; give a new file."
        )
    config = job_file.load(options.config, options.set)
    with session(config) as spark:
        calibration = job.calibrate(spark, config, sample=options.sample)
    calibration.save(options.to)
    log.info("The ranges of %d vectors are in %s.", calibration.rows, options.to)
    return {"rows": calibration.rows, "fingerprint": calibration.fingerprint, "to": str(options.to)}
