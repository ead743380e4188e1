"""``e5spark duplicates``: groups of near-duplicates in a job's output."""

import argparse
import logging
from pathlib import Path
from typing import Any

from pyspark.sql import functions as F

from e5spark.cli.overrides import add_overrides
from e5spark.errors import ConflictError
from e5spark.job import job_file, retrieval
from e5spark.job.session import session
from e5spark.names import redacted
from e5spark.search.duplicates import calibrated_threshold, duplicates
from e5spark.tables.sinks.paths import check_path
from e5spark.tables.storage.open import open_storage

log = logging.getLogger("e5spark")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    parser.add_argument("config", type=Path, help="the job file that wrote the vectors")
    parser.add_argument(
        "--threshold",
        type=float,
        help="the lowest score of a pair (9/10 of the way from the mean of random pairs to 1)",
    )
    parser.add_argument("--to", help="where to write id, group_id and keep, as Parquet")
    parser.add_argument("--vector", help="the column of vectors, if the job writes several")
    add_overrides(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the command and returns the document of its last line."""
    config = job_file.load(options.config, options.set)
    with session(config) as spark:
        table = retrieval.written_vectors(spark, config, options.vector)
        threshold = options.threshold
        if options.to is not None:
            check_path(options.to)
            if open_storage(spark, options.to).list(""):
                raise ConflictError(
                    f"{redacted(options.to)} already exists and was not overwritten; give a new "
                    "directory."
                )
        if threshold is None:
            threshold = calibrated_threshold(table.rows, id=table.id, vector=table.vector)
        groups = duplicates(table.rows, threshold=threshold, id=table.id, vector=table.vector)
        if options.to is not None:
            groups.write.parquet(options.to)
            groups = spark.read.parquet(options.to)
        kept = F.sum(F.col("keep").cast("int"))
        counts = groups.agg(F.count("*").alias("rows"), kept.alias("groups")).collect()[0]
    rows, number = counts.rows, counts.groups or 0
    log.info(
        "%d rows are in %d groups of near-duplicates (score of at least %.4f): keep %d, and %d "
        "can be left out.",
        rows,
        number,
        threshold,
        number,
        rows - number,
    )
    document = {"threshold": threshold, "groups": number, "rows": rows, "redundant": rows - number}
    return document if options.to is None else {**document, "to": redacted(options.to)}
