"""``e5spark init``: the commented job file."""

import argparse
import logging
from pathlib import Path
from typing import Any

from e5spark.job import job_file

log = logging.getLogger("e5spark")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    parser.add_argument(
        "directory", type=Path, nargs="?", default=Path(), help="where to write it (this directory)"
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the command and returns the document of its last line."""
    path = job_file.write_example(options.directory)
    log.info("The job file is %s; edit it, then run: e5spark embed %s", path, path)
    return {"file": str(path)}
