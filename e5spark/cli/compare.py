"""``e5spark compare``: precisions, output types and dims side by side."""

import argparse
import sys
from pathlib import Path
from typing import Any

from e5spark.cli.evaluate import write_document
from e5spark.cli.overrides import add_overrides
from e5spark.evaluate import compare, evaluation_file
from e5spark.job.session import open_session


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    parser.add_argument("config", type=Path, help="the evaluation file, with [compare]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the document here, too")
    add_overrides(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the command and returns the document of its last line."""
    config = evaluation_file.load(options.config, options.set)
    with open_session(config.spark, formats=evaluation_file.formats(config)) as spark:
        variants = compare.compare(spark, config)
    document: dict[str, Any] = {"variants": [variant.as_dict() for variant in variants]}
    sys.stdout.write(compare.table(variants) + "\n")
    if options.json:
        write_document(document, options.json)
    return document
