"""``e5spark export``: hands the vectors of a job's output over to an index."""

import argparse
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from e5spark.cli.overrides import add_overrides
from e5spark.job import job_file
from e5spark.job.export import ExportOptions
from e5spark.job.export_directory import export
from e5spark.job.export_ids import NAMESPACE
from e5spark.job.session import session
from e5spark.names import redacted

log = logging.getLogger("e5spark")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    parser.add_argument("config", type=Path, help="the job file that wrote the vectors")
    parser.add_argument("--to", required=True, help="a new directory for the export")
    parser.add_argument(
        "--since", metavar="EXPORT", help="the export that the index has: write what has changed"
    )
    parser.add_argument("--vector", help="the column of vectors, if the job writes several")
    parser.add_argument(
        "--columns", default="", help="further columns of the table: title,lang (none)"
    )
    ids = parser.add_mutually_exclusive_group()
    ids.add_argument("--uuid", action="store_true", help="make UUIDs (version 5) of the ids")
    ids.add_argument("--int64", action="store_true", help="make whole numbers of the ids")
    parser.add_argument(
        "--namespace", default=NAMESPACE, metavar="UUID", help="the namespace of such ids"
    )
    add_overrides(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the command and returns the document of its last line."""
    config = job_file.load(options.config, options.set)
    wanted = ExportOptions(
        vector=options.vector,
        columns=tuple(filter(None, map(str.strip, options.columns.split(",")))),
        ids="uuid" if options.uuid else "int64" if options.int64 else "table",
        namespace=options.namespace,
    )
    with session(config) as spark:
        record = export(spark, config, wanted, to=options.to, since=options.since)
    counts = record.counts
    log.info(
        "%d rows are exported (%d new, %d changed) and %d ids are deleted; an index that has "
        "loaded them has %d rows.",
        counts["exported"],
        counts["new"],
        counts["changed"],
        counts["deleted"],
        counts["ok"],
    )
    document = {**asdict(record), **counts}
    for name in ("state", "format", "counts"):
        del document[name]
    return {"to": redacted(options.to), **document}
