"""``e5spark compact``: fewer, larger files."""

import argparse
import logging
from pathlib import Path
from typing import Any

from e5spark.cli.overrides import add_overrides
from e5spark.errors import OptionError
from e5spark.job import job_file
from e5spark.job import run as job
from e5spark.job.session import session

log = logging.getLogger("e5spark")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    parser.add_argument("config", type=Path, help="the job file")
    parser.add_argument("--megabytes", type=int, default=512, help="size of a merged file (512)")
    add_overrides(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the command and returns the document of its last line."""
    if options.megabytes < 1:
        raise OptionError(
            f"--megabytes is {options.megabytes}; it must be a positive whole number."
        )
    config = job_file.load(options.config, options.set)
    with session(config) as spark:
        files = job.compact(spark, config, target_bytes=options.megabytes << 20)
    log.info("%(files_before)d files of %(output)s became %(files_after)d.", files)
    return files
