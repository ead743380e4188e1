"""Brings a table up to date with its source: adds, replaces, refreshes and removes rows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from e5spark.job import chunks, diff
from e5spark.job.config import RunConfig
from e5spark.job.metrics import is_first_row, total
from e5spark.job.refresh import record_refreshed
from e5spark.job.report import Counts
from e5spark.job.source import Source
from e5spark.job.trace import Trace
from e5spark.job.watch import Watch
from e5spark.job.work_plan import Table, WorkPlan, plan_work
from e5spark.model.output_type import vector_bytes
from e5spark.model.resolve import Plan
from e5spark.spark.columns import result_names
from e5spark.tables.ledger.records import Record
from e5spark.tables.sinks.commit import Commits
from e5spark.tables.sinks.files import write_path
from e5spark.tables.sinks.staging import stage
from e5spark.tables.spark_settings import described


@dataclass(frozen=True, kw_only=True)
class SyncContext:
    """Everything that a sync needs.

    Attributes:
        run: How the job runs.
        plan: The model.
        source: The input.
        commits: The table, whose lock is held.
        watch: The watch over the run.
        trace: What the run leaves for its report.
    """

    run: RunConfig
    plan: Plan
    source: Source
    commits: Commits
    watch: Watch
    trace: Trace


def sync(spark: SparkSession, context: SyncContext, *, recovered: int) -> Counts:
    """Brings a table up to date with its source and returns what was counted.

    Args:
        spark: The session.
        context: The table, with nothing pending, its source and the model.
        recovered: Rows of earlier runs that the recovery made visible.

    Raises:
        ConflictError: If another run takes over the table meanwhile, the table is complete and its
            rows have no ids, or the canaries have other vectors.
        InputError: If ids are null or duplicates, or the source cannot be read.
        TransientError: If the source changes while it is read.
    """
    commits, source = context.commits, context.source
    plan = plan_work(
        source,
        Table(
            target=commits.target,
            has_finished=commits.ledger.has_finished,
            recovered=recovered,
            rows=lambda: commits.target.rows(commits.schema),
        ),
        run=context.run,
        names=result_names(context.plan, source.texts),
        keep=lambda differences: _written(spark, commits, differences),
    )
    if commits.target.publishes_once:
        plan = replace(plan, work=plan.work.withColumn(diff.KIND, F.lit("deferred")))
    records: list[Record] = []
    refreshed: list[Record] = []
    if plan.refresh is not None:
        # Before the model, which may fail: what is recorded is published by the next run.
        names = result_names(context.plan, source.texts)
        record = record_refreshed(
            commits,
            source,
            plan.refresh,
            expected=plan.refreshed,
            is_first=is_first_row(context.plan, names),
        )
        refreshed, commits = [record], commits.after(1)
    if plan.rows != 0:
        context.watch.check_canaries(spark)
        run = context.run
        sizes = chunks.sizes(
            spark,
            rows=run.chunk_rows,
            tasks=run.partitions,
            concurrent_chunks=run.concurrent_chunks,
            file_bytes=run.file_megabytes << 20,
            expected=plan.rows,
        )
        parts = chunks.write_work(
            plan.work, commits, sizes, expected=plan.rows, vector_bytes=_vector_bytes(context)
        )
        if plan.rows is not None:
            diff.check_unchanged(plan.rows, sum(chunk.rows for chunk in parts))
        records = chunks.embed_chunks(
            parts,
            plan=context.plan,
            source=source,
            commits=commits,
            sizes=sizes,
            watch=context.watch,
            trace=context.trace,
        )
    return _finish(spark, commits, records, plan, recovered, refreshed)


def _written(spark: SparkSession, commits: Commits, differences: DataFrame) -> DataFrame:
    """Writes the ids that differ, because they are read twice, and returns them.

    Their size is then known to Spark: a few changes are broadcast to the source, and no text is
    shuffled.
    """
    path = commits.ledger.work_path("changes")
    with described(spark, "find changes"):
        write_path(differences, path, format="parquet", options={})
    return spark.read.schema(differences.schema).parquet(path)


def _vector_bytes(context: SyncContext) -> int:
    """Returns the bytes of the vectors of one row."""
    plan, columns = context.plan, len(context.source.texts.column_prefixes)
    return columns * vector_bytes(plan.recipe.dim, plan.spec.output_type)


def finish_empty(spark: SparkSession, context: SyncContext, *, recovered: int) -> Counts:
    """Returns the counts of a sync of a source without rows; it makes a new table readable."""
    plan = WorkPlan(work=context.source.rows, rows_in=0, rows=0)
    return _finish(spark, context.commits, [], plan, recovered)


def _finish(
    spark: SparkSession,
    commits: Commits,
    records: list[Record],
    plan: WorkPlan,
    recovered: int,
    refreshed: Sequence[Record] = (),
) -> Counts:
    _make_visible(spark, commits, [*refreshed, *records], plan)
    commits.ledger.sweep()
    counts = total([record.counts for record in records])
    rows_in = counts["embedded"] if plan.rows_in is None else plan.rows_in
    return Counts(
        **counts,
        rows_in=rows_in,
        duplicates=plan.duplicates,
        refreshed=plan.refreshed,
        skipped=rows_in - counts["embedded"] - plan.refreshed,
        deleted=plan.deletions,
        recovered=recovered,
        chunks=len(records),
        epoch=commits.ledger.epoch,
    )


def _make_visible(
    spark: SparkSession, commits: Commits, records: list[Record], plan: WorkPlan
) -> None:
    """Makes deferred rows visible, or a new table without rows readable."""
    # Refreshed rows have the number before the first chunk.
    name = commits.ledger.name(len(records) + 1)
    deferred = tuple(record.name for record in records if record.kind == "deferred")
    if deferred or plan.deletions:
        record = Record(name=name, kind="replace", includes=deferred)
        with described(spark, "publish"):
            commits.replace(spark, record, deleted=plan.deleted)
    elif not records and not commits.ledger.has_finished:
        empty = spark.createDataFrame([], commits.schema)
        files, _ = stage(empty, commits.target, commits.ledger, name)
        commits.commit(Record(name=name, kind="append", files=files))
