"""``e5spark evaluate``: judges the vectors that jobs wrote."""

import argparse
import sys
from pathlib import Path
from typing import Any

from e5spark.cli.overrides import add_overrides
from e5spark.evaluate import evaluation_file, report, trec
from e5spark.evaluate import run as evaluation
from e5spark.job.session import open_session


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    parser.add_argument("config", type=Path, help="the evaluation file")
    parser.add_argument(
        "--runs", type=Path, metavar="DIR", help="where to write run files and values by query"
    )
    add_overrides(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the command and returns the document of its last line."""
    config = evaluation_file.load(options.config, options.set)
    with open_session(config.spark, formats=evaluation_file.formats(config)) as spark:
        results = evaluation.run(spark, config)
    document: dict[str, Any] = {"tasks": [result.as_dict() for result in results]}
    if options.runs:
        document["files"] = [
            str(path)
            for result in results
            if result.judgement.hits is not None
            for path in trec.write(result.judgement, options.runs, result.task.key)
        ]
    sys.stdout.write(report.table(results) + "\n")
    return document
