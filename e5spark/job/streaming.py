"""A run over what has come to its input since the last one, micro-batch by micro-batch."""

from dataclasses import replace
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from e5spark.job import source as intake
from e5spark.job.config import JobConfig
from e5spark.job.source import Source
from e5spark.job.sync import SyncContext, finish_empty, sync_rows
from e5spark.tables.ledger import stream_checkpoint as bookmark
from e5spark.tables.sinks.commit import Commits
from e5spark.tables.sinks.files import write_path
from e5spark.tables.sources import stream
from e5spark.tables.storage.open import open_storage


def open_stream(spark: SparkSession, config: JobConfig) -> tuple[DataFrame, Source]:
    """Returns the input as a stream, and what the job would take of it if nothing had come.

    Raises:
        InputError: If it cannot be read, or not as a stream.
        ColumnError: If a column that shall be read or pass through is missing, or a name is taken.
        ConfigError: If two options contradict each other.
    """
    stream.check_session(spark)
    rows = intake.read_stream(spark, config)
    nothing = spark.createDataFrame([], rows.schema)
    return rows, intake.source_of(_reduced(nothing, config), config)


def follow(
    spark: SparkSession, given: SyncContext, config: JobConfig, rows: DataFrame
) -> dict[str, Any]:
    """Brings a table up to a stream, under its lock, and returns the sum of what was counted.

    A micro-batch is an update like that of a batch run. One that is read again after a kill finds
    the rows that were committed unchanged, and embeds what is left.

    Args:
        spark: The session.
        given: The update to which nothing has come.
        config: The job.
        rows: The stream.

    Raises:
        ConflictError: If its checkpoint was read from into another table, or for what ``update``
            raises it.
        InputError: If the stream cannot be read, or ids are null or stand in several rows.
    """
    source = config.input
    bookmark.claim(open_storage(spark, source.checkpoint_location), given.commits.ledger.storage)
    accounts: list[dict[str, Any]] = []

    def take(part: DataFrame) -> None:
        used = sum(account["chunks"] + 1 for account in accounts)
        one = replace(given, commits=_further(given.commits, used))
        # Written, because it is looked at twice; and read by a session whose settings are the
        # user's, while those of a stream are Spark's.
        path = one.commits.ledger.work_path("input")
        part = _reduced(part, config)
        write_path(part, path, format="parquet", options={"compression": "zstd"})
        written = spark.read.schema(part.schema).parquet(path)
        one = replace(one, intake=intake.source_of(written, config))
        accounts.append(sync_rows(spark, one, recovered=0))

    recovered = given.commits.recover(spark)
    stream.drain(
        rows, name=source.table or source.path, checkpoint=source.checkpoint_location, take=take
    )
    if not accounts:
        return {**finish_empty(spark, given, recovered=recovered), "micro_batches": 0}
    sums = {name: sum(one[name] for one in accounts) for name in accounts[0]}
    epoch = given.commits.ledger.epoch
    return {**sums, "recovered": recovered, "epoch": epoch, "micro_batches": len(accounts)}


def _reduced(df: DataFrame, config: JobConfig) -> DataFrame:
    return intake.last_changes(df, config) if config.input.change_feed else df


def _further(commits: Commits, used: int) -> Commits:
    ledger = commits.ledger.after(used)
    return Commits(ledger, commits.target, schema=commits.schema, id=commits.id)
