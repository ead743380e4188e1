"""What a run has to do: the one place that decides it, for a run and for a dry run."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from pyspark.sql import Column, DataFrame, Observation
from pyspark.sql import functions as F

from e5spark.errors import ConflictError
from e5spark.job import diff
from e5spark.job.config import RunConfig
from e5spark.job.source import Source
from e5spark.names import quoted, redacted
from e5spark.tables.sinks.protocol import Sink

log = logging.getLogger("e5spark")

# Ids are divided by their hash into this many parts, of which a sample takes some.
_PARTS = 1 << 40


@dataclass(frozen=True, kw_only=True)
class Table:
    """The table of a run, with nothing pending.

    Attributes:
        target: The table.
        has_finished: Whether any commit has ever become visible.
        recovered: Rows of earlier runs that the recovery makes visible.
        rows: Returns its rows; called only if it has finished.
    """

    target: Sink
    has_finished: bool
    recovered: int
    rows: Callable[[], DataFrame]


@dataclass(frozen=True, kw_only=True)
class WorkPlan:
    """What a sync has to do.

    Attributes:
        work: The rows to embed, with their kinds.
        rows_in: Rows of the input, without duplicates that were left out; None if they are not
            counted yet.
        rows: Rows to embed; None if they are not counted yet.
        changed: Those of them that take the place of another row.
        refresh: One column, the ids to refresh; None if there are none.
        refreshed: Ids to refresh.
        deleted: One column, the ids to remove; None if there are none.
        deletions: Ids to remove.
        duplicates: Rows that ``input.on_duplicate = "first"`` left out.
    """

    work: DataFrame
    rows_in: int | None
    rows: int | None
    changed: int = 0
    refresh: DataFrame | None = None
    refreshed: int = 0
    deleted: DataFrame | None = None
    deletions: int = 0
    duplicates: int = 0


def plan_work(
    source: Source,
    table: Table,
    *,
    run: RunConfig,
    names: Sequence[Mapping[str, str]],
    keep: Callable[[DataFrame], DataFrame],
) -> WorkPlan:
    """Returns what has to be done to bring a table up to date with its source.

    Args:
        source: The input.
        table: The table.
        run: How the job runs.
        names: The columns of the results, for each text; see ``result_names``.
        keep: Computes the ids that differ, in one Spark job, and returns them.

    Raises:
        ConflictError: If the table is complete and its rows have no ids, or its rows cannot be
            replaced.
        InputError: If ids are null or duplicates, or the source cannot be read.
    """
    if source.id is None:
        return _plan_without_ids(source, table)
    if not table.has_finished:
        counts = diff.count_ids(source.rows, source.id)
        diff.check_ids(source.rows, source.id, counts, is_text=source.id_is_text)
        work = source.rows.withColumn(diff.KIND, F.lit("append"))
        return WorkPlan(
            work=work,
            rows_in=counts["rows_in"],
            rows=counts["rows_in"],
            duplicates=counts["copies"] - counts["rows_in"],
        )
    return _plan_differences(source, source.id, table, run, names, keep)


def sample_work(
    source: Source,
    table: Table,
    *,
    run: RunConfig,
    names: Sequence[Mapping[str, str]],
    share: float,
    seed: int,
) -> DataFrame:
    """Returns a sample of the rows that ``plan_work`` embeds: about a share of them.

    Ids are chosen by their hash, in the source and the table alike, so that the differences of the
    sample are the sample of the differences: only the chosen ids are compared.

    Args:
        source: The input.
        table: The table.
        run: How the job runs.
        names: The columns of the results, for each text.
        share: From 0 to 1; all rows with 1.
        seed: Another sample for another number.
    """
    if source.id is None:
        return source.rows.sample(fraction=share, seed=seed) if share < 1 else source.rows
    chosen = _is_chosen(source.id, share, seed)
    rows = source.rows.filter(chosen)
    if not table.has_finished:
        return rows
    part = replace(table, rows=lambda: table.rows().filter(chosen))
    differences, _ = _compare(replace(source, rows=rows), source.id, part, run, names)
    return diff.rows_to_embed(rows, differences, source.id)


def _is_chosen(id: str, share: float, seed: int) -> Column:
    if share >= 1:
        return F.lit(True)
    part = F.pmod(F.xxhash64(F.col(quoted(id)), F.lit(seed)), F.lit(_PARTS))
    return part < F.lit(int(share * _PARTS))


def _plan_without_ids(source: Source, table: Table) -> WorkPlan:
    work = source.rows.withColumn(diff.KIND, F.lit("deferred"))
    if table.recovered:  # all rows: a table without ids has one commit
        return WorkPlan(work=work, rows_in=0, rows=0)
    if table.has_finished:
        raise ConflictError(
            f"The output {redacted(table.target.name)} already exists and is complete; without an "
            "id nobody can tell which rows are new. Set input.id (or input.hash_id = true) and "
            "give a new output, which later runs can update; or only give a new output."
        )
    log.info("No input.id: all rows are embedded; they become visible when the run ends.")
    return WorkPlan(work=work, rows_in=None, rows=None)


def _plan_differences(
    source: Source,
    id: str,
    table: Table,
    run: RunConfig,
    names: Sequence[Mapping[str, str]],
    keep: Callable[[DataFrame], DataFrame],
) -> WorkPlan:
    differences, observation = _compare(source, id, table, run, names)
    differences = keep(differences)
    counts = {name: int(value or 0) for name, value in observation.get.items()}
    diff.check_ids(source.rows, id, counts, is_text=source.id_is_text)
    if not source.is_feed:
        diff.check_not_empty(counts, table.target.name)
    if counts["deferred"] or counts["refresh"] or counts["delete"]:
        table.target.check_replaceable()
    return WorkPlan(
        work=diff.rows_to_embed(source.rows, differences, id),
        rows_in=counts["rows_in"],
        rows=counts["append"] + counts["deferred"],
        changed=counts["deferred"],
        refresh=diff.ids_of(differences, id, "refresh") if counts["refresh"] else None,
        refreshed=counts["refresh"],
        deleted=diff.ids_of(differences, id, "delete") if counts["delete"] else None,
        deletions=counts["delete"],
        duplicates=counts["copies"] - counts["rows_in"],
    )


def _compare(
    source: Source, id: str, table: Table, run: RunConfig, names: Sequence[Mapping[str, str]]
) -> tuple[DataFrame, Observation]:
    """Returns the ids that differ, and the counts that are observed while they are computed."""
    return diff.diff(
        source.rows,
        table.rows(),
        diff.Compared(
            id=id,
            hash=source.hash,
            kept=source.kept if run.refresh_columns else (),
            statuses=[columns["status"] for columns in names],
        ),
        find_deleted=run.delete_missing and not source.is_feed,
        deleted_ids=source.deleted_ids if run.delete_missing else None,
    )
