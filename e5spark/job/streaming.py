"""A run over the rows that its input has gained since the last run, one micro-batch at a time."""

from dataclasses import replace

from pyspark.sql import DataFrame, SparkSession

from e5spark.job import source as sources
from e5spark.job.config import JobConfig
from e5spark.job.evolution import conformed
from e5spark.job.report import Counts, total
from e5spark.job.source import Source
from e5spark.job.sync import SyncContext, finish_empty, sync
from e5spark.tables.ledger import stream_checkpoint
from e5spark.tables.sinks.files import write_path
from e5spark.tables.sources import stream
from e5spark.tables.storage.open import open_storage


def open_stream(spark: SparkSession, config: JobConfig) -> tuple[DataFrame, Source]:
    """Returns the input as a stream, and the source of a micro-batch without rows.

    Raises:
        InputError: If the input cannot be read, or cannot be read as a stream.
        ColumnError: If a column that is embedded or passes through is missing, or a name is taken.
        ConfigError: If two options contradict each other.
    """
    stream.check_session(spark)
    rows = sources.read_stream(spark, config)
    empty = spark.createDataFrame([], rows.schema)
    return rows, sources.source_of(_last_changes(empty, config), config)


def run_stream(
    spark: SparkSession,
    context: SyncContext,
    config: JobConfig,
    rows: DataFrame,
    *,
    recovered: int,
) -> Counts:
    """Brings a table up to date with a stream, under its lock, and returns the sum of all counts.

    Each micro-batch is synced like the input of a batch run. When a micro-batch is read again after
    a kill, the rows that were committed count as unchanged, and only the others are embedded.

    Args:
        spark: The session.
        context: The context of a sync, with a source that has no rows.
        config: The job.
        rows: The stream.
        recovered: Rows of earlier runs that the recovery made visible.

    Raises:
        ConflictError: If the stream checkpoint belongs to another table, or ``sync`` raises it.
        InputError: If the stream cannot be read, or ids are null or duplicates.
    """
    table = config.input
    storage = open_storage(spark, table.checkpoint_location)
    stream_checkpoint.claim(storage, context.commits.ledger.storage)
    batches: list[Counts] = []
    columns = len(context.source.columns) + len(context.source.absent)
    fields = context.commits.schema.fields[:columns]

    def process(part: DataFrame) -> None:
        # Beside its chunks a sync may record refreshed rows and a replacement.
        used = sum(counts.chunks + 2 for counts in batches)
        commits = context.commits.after(used)
        # Written, because it is read twice, and because the user's session then reads it: the
        # session of a stream has Spark's settings.
        path = commits.ledger.work_path("input")
        part = _last_changes(part, config)
        write_path(part, path, format="parquet", options={"compression": "zstd"})
        written = spark.read.schema(part.schema).parquet(path)
        source = conformed(sources.source_of(written, config), fields)
        batches.append(sync(spark, replace(context, commits=commits, source=source), recovered=0))

    stream.drain(
        rows,
        name=table.table or table.path,
        checkpoint=table.checkpoint_location,
        process=process,
    )
    if not batches:
        return replace(finish_empty(spark, context, recovered=recovered), micro_batches=0)
    return total(batches, recovered=recovered)


def _last_changes(df: DataFrame, config: JobConfig) -> DataFrame:
    return sources.last_changes(df, config) if config.input.change_feed else df
