"""Says what a run will do and take, without doing it; nothing is written."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from pyspark.sql import DataFrame, SparkSession

from e5spark.errors import ConfigError, E5SparkError
from e5spark.job import canaries, chunks
from e5spark.job.config import JobConfig
from e5spark.job.estimate import Estimate, Rows
from e5spark.job.evolution import conformed, conformed_table, evolved
from e5spark.job.report import versions
from e5spark.job.run import OpenJob, check_table, open_job
from e5spark.job.source import Source
from e5spark.job.watch import Watch
from e5spark.job.work_plan import Table, WorkPlan, plan_work, sample_work
from e5spark.names import redacted
from e5spark.spark.columns import result_names
from e5spark.spark.executors import executors
from e5spark.spark.speed import Measurement, measure_sample
from e5spark.tables.ledger.holder import last_holder
from e5spark.tables.ledger.layout import has_commits
from e5spark.tables.ledger.ledger import Ledger
from e5spark.tables.sinks.commit import Commits
from e5spark.tables.spark_errors import worker_died
from e5spark.tables.storage.open import open_storage
from e5spark.tables.storage.read_only import ReadOnlyStorage

log = logging.getLogger("e5spark")

# At most so many tasks measure, each for so many seconds: more would say no more.
_TASKS, _SECONDS = 8, 5.0
# More rows than the tasks take, so that each of them surely gets a whole window.
_SURPLUS = 1.1


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a run of a job will do and take.

    Attributes:
        estimate: The numbers.
        model: The checkpoint's name, or the model as the user named it.
        engine: The engine that executors have used; None if nothing was embedded.
        precision: The precision that the model is run in.
        dim: Components of a vector.
        fingerprint: Of the vectors; 64 hex digits.
        output: The table as the user names it, without credentials.
        canaries: ``matched``, ``embedded`` (the table has none yet), ``not_needed`` or ``off``.
        notes: What else is to be known; sentences.
        versions: Of e5spark, Python, Spark and the driver's packages.
    """

    estimate: Estimate
    model: str
    engine: str | None
    precision: str
    dim: int
    fingerprint: str
    output: str
    canaries: str
    notes: tuple[str, ...]
    versions: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON document."""
        others = {name: value for name, value in vars(self).items() if name != "estimate"}
        return {"dry_run": True, **self.estimate.as_dict(), **others, "notes": list(self.notes)}


def dry_run(spark: SparkSession, config: JobConfig) -> DryRun:
    """Returns what ``run`` will do and take; nothing is written, and no lock is taken.

    It refuses what ``run`` refuses, with the same errors. A run that holds the lock is no reason:
    the counts are those of the moment, and a note says so.

    Raises:
        ConfigError: If the input is a stream, which cannot be read without being used up.
        E5SparkError: As ``run`` raises it before it embeds the first row.
    """
    job = open_job(spark, config)
    if job.stream is not None:
        raise ConfigError(
            'A dry run cannot read a stream (input.trigger = "available_now") without using it up. '
            "Add --set input.trigger=batch to the dry run alone: it then compares the whole input "
            "with the output, and counts the rows that the stream would embed."
        )
    storage = ReadOnlyStorage(
        open_storage(spark, job.target.location) if job.target.location else None
    )
    ledger = Ledger(storage, _NoLock())
    commits = check_table(spark, job, ledger)
    source, table = _as_after_recovery(spark, job, commits)
    started = time.monotonic()
    plan = _plan(job, source, table)
    compare_seconds = time.monotonic() - started
    rows = _rows(plan, table)
    canary_state, canary_seconds = _check_canaries(spark, job, ledger, rows)
    run = job.config.run
    sizes = chunks.sizes(
        spark,
        rows=run.chunk_rows,
        tasks=run.partitions,
        concurrent_chunks=run.concurrent_chunks,
        file_bytes=run.file_megabytes << 20,
        expected=rows.to_embed,
    )
    tasks = min(_TASKS, chunks.tasks_of(sizes, rows.to_embed))
    parts = _measure(job, source, table, rows, tasks=tasks) if rows.to_embed else []
    # Columns of the input table are rows that one MERGE replaces.
    replaced = rows.to_embed if job.target.publishes_once else rows.replaced
    estimate = Estimate(
        rows=rows,
        measurements=parts,
        sizes=sizes,
        executors=executors(spark),
        compare_seconds=compare_seconds,
        canary_seconds=canary_seconds,
        table=job.target.size() if replaced else None,
        replaced=replaced,
        price=run.price_per_hour,
    )
    return DryRun(
        estimate=estimate,
        model=job.plan.spec.checkpoint or job.plan.spec.model,
        engine=parts[0].engine if parts else None,
        precision=job.plan.spec.precision,
        dim=job.plan.recipe.dim,
        fingerprint=job.plan.fingerprint.digest,
        output=redacted(job.target.name),
        canaries=canary_state,
        notes=tuple(_notes(ledger, estimate)),
        versions=versions(spark),
    )


class _NoLock:
    """In place of a table's lock: nothing may be changed."""

    epoch = 0

    def check(self) -> NoReturn:
        raise E5SparkError(
            "A dry run was about to change its table; nothing was changed. This is a bug in "
            "e5spark."
        )


def _as_after_recovery(spark: SparkSession, job: OpenJob, commits: Commits) -> tuple[Source, Table]:
    """Returns the input and the table as a run has them when it plans its work."""
    source, ledger = job.source, commits.ledger
    if not has_commits(ledger.storage):
        return source, Table(
            target=job.target, has_finished=False, recovered=0, rows=lambda: _no_rows(spark, job)
        )
    commits = commits.as_stored()
    rows, recovered = commits.after_recovery(spark)
    has_finished = ledger.has_finished or recovered > 0
    if source.id is not None or not has_finished:
        fields = evolved(commits, source, job.results, mode=job.schema_mode)
        source, rows = conformed(source, fields), conformed_table(rows, fields)
    return source, Table(
        target=job.target, has_finished=has_finished, recovered=recovered, rows=lambda: rows
    )


def _no_rows(spark: SparkSession, job: OpenJob) -> DataFrame:
    return spark.createDataFrame([], job.schema)


def _plan(job: OpenJob, source: Source, table: Table) -> WorkPlan:
    def keep(differences: DataFrame) -> DataFrame:
        # Computed, and thrown away: the counts are observed meanwhile.
        differences.write.format("noop").mode("overwrite").save()
        return differences

    names = result_names(job.plan, source.texts)
    return plan_work(source, table, run=job.config.run, names=names, keep=keep)


def _rows(plan: WorkPlan, table: Table) -> Rows:
    # Without ids all rows are embedded, and a run counts them only then.
    work = plan.work.count() if plan.rows is None else plan.rows
    rows_in = work if plan.rows_in is None else plan.rows_in
    return Rows(
        rows_in=rows_in,
        duplicates=plan.duplicates,
        new=work - plan.changed,
        changed=plan.changed,
        refreshed=plan.refreshed,
        unchanged=rows_in - work - plan.refreshed,
        deleted=plan.deletions,
        recovered=table.recovered,
    )


def _check_canaries(
    spark: SparkSession, job: OpenJob, ledger: Ledger, rows: Rows
) -> tuple[str, float]:
    """Returns what a run says of its canaries, and the seconds that they take.

    Raises:
        ConflictError: If they have other vectors than when they were first embedded.
    """
    if not job.config.quality.canaries:
        return "off", 0.0
    if not rows.to_embed:
        return "not_needed", 0.0
    started = time.monotonic()
    if has_commits(ledger.storage) and ledger.manifest.canaries is not None:
        Watch(job.config.quality, job.plan, ledger, versions(spark)).check_canaries(spark)
        state = "matched"
    else:
        canaries.embed(spark, job.plan)
        state = "embedded"
    return state, time.monotonic() - started


def _measure(
    job: OpenJob, source: Source, table: Table, rows: Rows, *, tasks: int
) -> list[Measurement]:
    window = job.plan.spec.sort_window
    share = min(1.0, _SURPLUS * tasks * window / rows.to_embed)
    columns = [name for name in source.columns if name in source.rows.columns]
    for seed in (0, 1):
        sample = sample_work(
            source,
            table,
            run=job.config.run,
            names=result_names(job.plan, source.texts),
            share=share,
            seed=seed,
        )
        try:
            return measure_sample(
                sample,
                job.plan,
                source.texts,
                columns=columns,
                tasks=tasks,
                seconds=_SECONDS,
                codec=job.target.options.get("compression", "zstd").lower(),
            )
        except Exception as error:  # py4j has errors that PySpark does not wrap
            if not worker_died(error):
                raise
            log.warning("A Python worker died of the sample; another sample is taken.")
    raise E5SparkError(
        "Two samples have each ended the Python worker that measured them. A run embeds such texts "
        "in a process of their own, and a dry run cannot say what that takes. "
        "docs/worker-deaths.md has the causes."
    )


def _notes(ledger: Ledger, estimate: Estimate) -> list[str]:
    notes = []
    holder = last_holder(ledger.storage)
    if holder is not None and not holder.is_released and holder.is_alive is not False:
        notes.append(
            f"{holder.sentence} Its rows are still among those to embed, and a run that begins now "
            "is refused."
        )
    if estimate.executors.dynamic:
        notes.append(
            f"Spark adds and removes executors; the hours are those of the "
            f"{estimate.executors.count} there are now."
        )
    unmeasured = estimate.rows.to_embed and not estimate.measurements
    if unmeasured:
        notes.append("The sample was empty, so nothing was measured.")
    return notes
