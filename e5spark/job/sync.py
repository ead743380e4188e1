"""One update of a table: new rows come, changed ones are replaced, and those that left may go."""

import logging
from dataclasses import dataclass, replace
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from e5spark.errors import ConflictError
from e5spark.job import chunks
from e5spark.job import diff as changes
from e5spark.job.config import RunConfig
from e5spark.job.metrics import total
from e5spark.job.source import Source
from e5spark.model.resolve import Plan
from e5spark.spark.columns import result_names
from e5spark.tables.ledger.ledger import Record
from e5spark.tables.sinks.commit import Commits
from e5spark.tables.sinks.files import write_path
from e5spark.tables.sinks.staging import stage

log = logging.getLogger("e5spark")


@dataclass(frozen=True, kw_only=True)
class SyncContext:
    """What an update needs to know.

    Attributes:
        run: How the job runs.
        plan: The model.
        intake: The source.
        commits: The table.
    """

    run: RunConfig
    plan: Plan
    intake: Source
    commits: Commits


@dataclass(frozen=True, kw_only=True)
class WorkPlan:
    """The rows to embed with the kind of each, the ids to remove, and how many there are.

    Those that ``input.on_duplicate = "first"`` left out are not among the rows of the input.
    """

    work: DataFrame
    rows_in: int | None
    rows: int | None
    deleted: DataFrame | None = None
    deletions: int = 0
    duplicates: int = 0


def update(spark: SparkSession, given: SyncContext) -> dict[str, Any]:
    """Brings a table up to its source, under its lock, and returns what was counted.

    Raises:
        ConflictError: If another run takes the table over meanwhile, or rows without ids are there.
        InputError: If ids are null or stand in several rows, or the source cannot be read.
        TransientError: If the source changes while it is read.
    """
    return sync_rows(spark, given, recovered=given.commits.recover(spark))


def sync_rows(spark: SparkSession, given: SyncContext, *, recovered: int) -> dict[str, Any]:
    """Does what ``update`` does, once what earlier runs have left is recovered; see there."""
    commits, intake = given.commits, given.intake
    todo = _find(spark, given, recovered)
    if commits.target.holds:
        todo = replace(todo, work=todo.work.withColumn(changes.KIND, F.lit("deferred")))
    parts: list[chunks.Chunk] = []
    records: list[Record] = []
    if todo.rows != 0:
        run = given.run
        sizes = chunks.sizes(
            spark,
            rows=run.chunk_rows,
            tasks=run.partitions,
            concurrent_chunks=run.concurrent_chunks,
        )
        parts = chunks.write_work(todo.work, commits, sizes)
        rows = sum(chunk.rows for chunk in parts)
        if todo.rows is not None:
            changes.check_unchanged(todo.rows, rows)
        records = chunks.embed_chunks(
            parts, plan=given.plan, intake=intake, commits=commits, sizes=sizes
        )
    return _finish(spark, commits, records, todo, recovered)


def finish_empty(spark: SparkSession, given: SyncContext, *, recovered: int) -> dict[str, Any]:
    """Does what ``sync_rows`` does where nothing has come: an empty table can be read."""
    todo = WorkPlan(work=given.intake.rows, rows_in=0, rows=0)
    return _finish(spark, given.commits, [], todo, recovered)


def _finish(
    spark: SparkSession, commits: Commits, records: list[Record], todo: WorkPlan, recovered: int
) -> dict[str, Any]:
    _make_visible(spark, commits, records, todo)
    commits.ledger.sweep()
    counts = total([record.counts for record in records])
    rows_in = counts["embedded"] if todo.rows_in is None else todo.rows_in
    return {
        "rows_in": rows_in,
        "duplicates": todo.duplicates,
        **counts,
        "skipped": rows_in - counts["embedded"],
        "deleted": todo.deletions,
        "recovered": recovered,
        "chunks": len(records),
        "epoch": commits.ledger.epoch,
    }


def _find(spark: SparkSession, given: SyncContext, recovered: int) -> WorkPlan:
    commits, intake = given.commits, given.intake
    if intake.id is None:
        work = intake.rows.withColumn(changes.KIND, F.lit("deferred"))
        if recovered:  # the one commit that there is
            return WorkPlan(work=work, rows_in=0, rows=0)
        if commits.ledger.has_finished:
            raise ConflictError(
                f"The output {commits.target.name} exists already and is complete; without an id "
                "nobody can tell which rows are new. Give input.id (or input.hash_id = true) and a "
                "new output, which can then be updated; or a new output."
            )
        log.info("No input.id: all rows are embedded, and appear when the last one is.")
        return WorkPlan(work=work, rows_in=None, rows=None)
    if not commits.ledger.has_finished:
        counts = changes.count_ids(intake.rows, intake.id)
        changes.check_ids(intake.rows, intake.id, counts)
        work = intake.rows.withColumn(changes.KIND, F.lit("append"))
        return WorkPlan(
            work=work,
            rows_in=counts["rows_in"],
            rows=counts["rows_in"],
            duplicates=counts["copies"] - counts["rows_in"],
        )
    return _differences(spark, given, intake.id)


def _differences(spark: SparkSession, given: SyncContext, id: str) -> WorkPlan:
    commits, intake = given.commits, given.intake
    found, seen = changes.find(
        intake.rows,
        commits.target.rows(commits.schema),
        id=id,
        hash=intake.hash,
        statuses=[one["status"] for one in result_names(given.plan, intake.texts)],
        deleted=given.run.delete_missing and not intake.is_feed,
        gone=intake.gone if given.run.delete_missing else None,
    )
    # Written, because it is looked at twice, and because its size is then known to Spark: a few
    # changes are broadcast to the source, and no text is shuffled.
    path = f"{commits.target.location}/{commits.ledger.work}/changes"
    write_path(found, path, format="parquet", options={})
    counts = {name: int(value or 0) for name, value in seen.get.items()}
    changes.check_ids(intake.rows, id, counts)
    if not intake.is_feed:
        changes.check_not_empty(counts, commits.target.name)
    found = spark.read.schema(found.schema).parquet(path)
    return WorkPlan(
        work=changes.select(intake.rows, found, id),
        rows_in=counts["rows_in"],
        rows=counts["append"] + counts["deferred"],
        deleted=changes.deleted_ids(found, id) if counts["delete"] else None,
        deletions=counts["delete"],
        duplicates=counts["copies"] - counts["rows_in"],
    )


def _make_visible(
    spark: SparkSession, commits: Commits, records: list[Record], todo: WorkPlan
) -> None:
    """Makes the held rows visible; and makes sure that an empty table is one that can be read."""
    name = commits.ledger.name(len(records) + 1)
    held = tuple(record.name for record in records if record.kind == "deferred")
    if held or todo.deletions:
        record = Record(name=name, kind="replace", includes=held)
        commits.replace(spark, record, deleted=todo.deleted)
    elif not records and not commits.ledger.has_finished:
        empty = spark.createDataFrame([], commits.schema)
        files, _ = stage(empty, commits.target, commits.ledger, name)
        commits.record(Record(name=name, kind="append", files=files))
