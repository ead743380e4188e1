"""``e5spark compare``: precisions, output types and dims side by side."""

import argparse
import sys
from pathlib import Path
from typing import Any

from e5spark.cli.overrides import add_overrides
from e5spark.evaluate import compare, evaluation_file
from e5spark.job.session import open_session


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    parser.add_argument("config", type=Path, help="the evaluation file, with [compare]")
    add_overrides(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the command and returns the document of its last line."""
    config = evaluation_file.load(options.config, options.set)
    with open_session(config.spark, formats=evaluation_file.formats(config)) as spark:
        variants = compare.compare(spark, config)
    document: dict[str, Any] = {"variants": [variant.as_dict() for variant in variants]}
    sys.stdout.write(compare.table(variants) + "\n")
    return document
