"""Brings a table up to date with its source: adds, replaces, refreshes and removes rows."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from e5spark.errors import ConflictError
from e5spark.job import chunks, diff
from e5spark.job.config import RunConfig
from e5spark.job.metrics import is_first_row, total
from e5spark.job.refresh import record_refreshed
from e5spark.job.report import Counts
from e5spark.job.source import Source
from e5spark.job.watch import Watch
from e5spark.model.output_type import vector_bytes
from e5spark.model.resolve import Plan
from e5spark.spark.columns import result_names
from e5spark.tables.ledger.records import Record
from e5spark.tables.sinks.commit import Commits
from e5spark.tables.sinks.files import write_path
from e5spark.tables.sinks.staging import stage

log = logging.getLogger("e5spark")


@dataclass(frozen=True, kw_only=True)
class SyncContext:
    """Everything that a sync needs.

    Attributes:
        run: How the job runs.
        plan: The model.
        source: The input.
        commits: The table, whose lock is held.
        watch: The watch over the run.
    """

    run: RunConfig
    plan: Plan
    source: Source
    commits: Commits
    watch: Watch


@dataclass(frozen=True, kw_only=True)
class WorkPlan:
    """What a sync has to do.

    Attributes:
        work: The rows to embed, with their kinds.
        rows_in: Rows of the input, without duplicates that were left out; None if they are not
            counted yet.
        rows: Rows to embed; None if they are not counted yet.
        refresh: One column, the ids to refresh; None if there are none.
        refreshed: Ids to refresh.
        deleted: One column, the ids to remove; None if there are none.
        deletions: Ids to remove.
        duplicates: Rows that ``input.on_duplicate = "first"`` left out.
    """

    work: DataFrame
    rows_in: int | None
    rows: int | None
    refresh: DataFrame | None = None
    refreshed: int = 0
    deleted: DataFrame | None = None
    deletions: int = 0
    duplicates: int = 0


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
    plan = _plan_work(spark, context, recovered)
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
        )
    return _finish(spark, commits, records, plan, recovered, refreshed)


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


def _plan_work(spark: SparkSession, context: SyncContext, recovered: int) -> WorkPlan:
    commits, source = context.commits, context.source
    if source.id is None:
        work = source.rows.withColumn(diff.KIND, F.lit("deferred"))
        if recovered:  # all rows: a table without ids has one commit
            return WorkPlan(work=work, rows_in=0, rows=0)
        if commits.ledger.has_finished:
            raise ConflictError(
                f"The output {commits.target.name} already exists and is complete; without an id "
                "nobody can tell which rows are new. Set input.id (or input.hash_id = true) and "
                "give a new output, which later runs can update; or only give a new output."
            )
        log.info("No input.id: all rows are embedded; they become visible when the run ends.")
        return WorkPlan(work=work, rows_in=None, rows=None)
    if not commits.ledger.has_finished:
        counts = diff.count_ids(source.rows, source.id)
        diff.check_ids(source.rows, source.id, counts, is_text=source.id_is_text)
        work = source.rows.withColumn(diff.KIND, F.lit("append"))
        return WorkPlan(
            work=work,
            rows_in=counts["rows_in"],
            rows=counts["rows_in"],
            duplicates=counts["copies"] - counts["rows_in"],
        )
    return _plan_differences(spark, context, source.id)


def _plan_differences(spark: SparkSession, context: SyncContext, id: str) -> WorkPlan:
    commits, source = context.commits, context.source
    differences, observation = diff.diff(
        source.rows,
        commits.target.rows(commits.schema),
        diff.Compared(
            id=id,
            hash=source.hash,
            kept=source.kept if context.run.refresh_columns else (),
            statuses=[names["status"] for names in result_names(context.plan, source.texts)],
        ),
        find_deleted=context.run.delete_missing and not source.is_feed,
        deleted_ids=source.deleted_ids if context.run.delete_missing else None,
    )
    # Written, because it is read twice, and because its size is then known to Spark: a few
    # changes are broadcast to the source, and no text is shuffled.
    path = commits.ledger.work_path("changes")
    write_path(differences, path, format="parquet", options={})
    counts = {name: int(value or 0) for name, value in observation.get.items()}
    diff.check_ids(source.rows, id, counts, is_text=source.id_is_text)
    if not source.is_feed:
        diff.check_not_empty(counts, commits.target.name)
    if counts["deferred"] or counts["refresh"] or counts["delete"]:
        commits.target.check_replaceable()
    differences = spark.read.schema(differences.schema).parquet(path)
    return WorkPlan(
        work=diff.rows_to_embed(source.rows, differences, id),
        rows_in=counts["rows_in"],
        rows=counts["append"] + counts["deferred"],
        refresh=diff.ids_of(differences, id, "refresh") if counts["refresh"] else None,
        refreshed=counts["refresh"],
        deleted=diff.ids_of(differences, id, "delete") if counts["delete"] else None,
        deletions=counts["delete"],
        duplicates=counts["copies"] - counts["rows_in"],
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
        commits.replace(spark, record, deleted=plan.deleted)
    elif not records and not commits.ledger.has_finished:
        empty = spark.createDataFrame([], commits.schema)
        files, _ = stage(empty, commits.target, commits.ledger, name)
        commits.commit(Record(name=name, kind="append", files=files))
