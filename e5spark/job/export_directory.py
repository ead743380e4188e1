"""The directory of an export: rows to add or replace, ids to remove, and what both start from.

::

    vectors/      the rows that are new or have changed
    deleted/      the ids that are gone
    keys/         every id of the export and the version of its row: what a later export starts from
    export.json   what the rows are, and counts; ``state`` is ``done`` once all files are there

A table does not record which ids a run has removed, and merging or rewriting its files leaves no
trace of when a row came. So the changes are found by comparing the table with the keys of an
earlier export, which holds for every kind of table, whatever has happened to it meanwhile.
"""

import uuid
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime

from pyspark.sql import DataFrame, Observation, SparkSession
from pyspark.sql import functions as F

from e5spark.errors import ConfigError, E5SparkError, InputError, TransientError
from e5spark.job.config import JobConfig
from e5spark.job.export import ID, STATUS, VECTOR, VERSION, Export, ExportOptions, open_export
from e5spark.job.export_record import (
    DELETED,
    DOCUMENT,
    KEYS,
    VECTORS,
    ExportRecord,
    check_complete,
    check_free,
    earlier_export,
)
from e5spark.job.metrics import STATUSES
from e5spark.names import redacted
from e5spark.tables.ledger.documents import dumped
from e5spark.tables.sinks.files import parquet_options, write_path
from e5spark.tables.sinks.paths import check_path, overlap
from e5spark.tables.spark_errors import spark_errors
from e5spark.tables.storage.open import open_storage

_KIND, _OLD = "__e5spark_kind", "__e5spark_old_version"
_KINDS = ("new", "changed", "unchanged", "deleted")


def export(
    spark: SparkSession,
    config: JobConfig,
    options: ExportOptions,
    *,
    to: str,
    since: str | None = None,
) -> ExportRecord:
    """Writes the output of a job, or what has changed in it, to a new directory.

    Args:
        spark: The session.
        config: The job.
        options: What the index wants.
        to: The directory: a new one, or one of an export that did not end.
        since: The directory of the export that the index has; None exports all rows.

    Raises:
        ConfigError: If the directories overlap, or an option is wrong.
        ConflictError: If the directory has something else, or the earlier export is not complete,
            or its rows are not comparable with the rows of this one.
        InputError: If the table breaks the contract: a vector of another dim, or an id twice.
        TransientError: If a run is writing to the table, or changes it meanwhile.
    """
    for path in filter(None, (to, since)):
        check_path(path)
    files = open_storage(spark, to)
    check_free(files)
    table = open_export(spark, config, options)
    if overlap(to, table.sink.location) or (since is not None and overlap(to, since)):
        raise ConfigError(
            f"The export {redacted(to)} and the table or the earlier export are the same "
            "directory, or one lies inside the other; give the export a directory of its own."
        )
    record, earlier, old = _record(table, options), None, None
    if since is not None:
        earlier = earlier_export(open_storage(spark, since), record)
        record = replace(record, since=earlier.export)
        old = _keys(spark, since)
    for name in (VECTORS, DELETED, KEYS):
        files.delete(name)
    files.put(DOCUMENT, dumped(asdict(record)))

    by_status = _by_status(table)
    keys = table.table.where(F.col(STATUS) == "ok").select(ID, VERSION)
    write_path(keys, f"{to}/{KEYS}", format="parquet", options={})
    keys = spark.read.schema(keys.schema).parquet(f"{to}/{KEYS}")
    changes, kinds = _changes(keys, old, count=_count_unique(keys, table))
    if earlier is not None:
        check_complete(earlier, kinds, str(since))
    write_path(
        changes.where(F.col(_KIND) == "deleted").select(ID).coalesce(1),
        f"{to}/{DELETED}",
        format="parquet",
        options={},
    )
    chosen = table.table.where(F.col(STATUS) == "ok")
    if old is not None:
        ids = changes.where(F.col(_KIND).isin("new", "changed")).select(ID)
        chosen = chosen.join(ids, ID, "left_semi")
    _write_vectors(chosen, table, f"{to}/{VECTORS}", expected=kinds["new"] + kinds["changed"])
    table.check_settled()
    counts = _reconciled(by_status, kinds)
    record = replace(record, state="done", counts=counts, by_status=by_status)
    files.put(DOCUMENT, dumped(asdict(record)))
    return record


def _record(table: Export, options: ExportOptions) -> ExportRecord:
    return ExportRecord(
        state="started",
        output=redacted(table.sink.name),
        run=table.run,
        export=str(uuid.uuid4()),
        since=None,
        exported_at=datetime.now(UTC).isoformat(timespec="seconds"),
        id={
            "column": table.source_id,
            "type": table.id_type,
            "made_by": options.ids,
            "namespace": None if options.ids == "table" else options.namespace,
        },
        vector={
            "column": table.vector,
            "type": table.output_type,
            "dim": table.manifest.dim,
            "fingerprint": table.manifest.fingerprint,
        },
        columns=options.columns,
    )


def _keys(spark: SparkSession, export: str) -> DataFrame:
    with spark_errors(f"The export {export} cannot be read", otherwise=InputError):
        keys = spark.read.parquet(f"{export}/{KEYS}")
        return keys.select(ID, F.col(VERSION).alias(_OLD))


def _by_status(table: Export) -> dict[str, int]:
    counts = [F.count(F.when(F.col(STATUS) == status, 1)).alias(status) for status in STATUSES]
    name = table.sink.name
    with spark_errors(f"The output {name} cannot be read", output=table.sink.location):
        (row,) = table.table.agg(F.count("*").alias("rows"), *counts).collect()
    known = {status: int(row[status]) for status in STATUSES}
    return {**known, "not_embedded": int(row["rows"]) - sum(known.values())}


def _count_unique(keys: DataFrame, table: Export) -> int:
    """Returns how many ids there are; raises InputError if they are not unique."""
    (row,) = keys.agg(F.count("*").alias("rows"), F.count_distinct(ID).alias("ids")).collect()
    if row["rows"] != row["ids"]:
        raise InputError(
            f"{row['rows']} rows of {table.sink.name} have {row['ids']} different ids, and an "
            "index has one row for each id. Remove rows that e5spark has not written, and rows "
            f"whose id {table.source_id!r} is null or occurs twice."
        )
    return int(row["rows"])


def _changes(
    keys: DataFrame, old: DataFrame | None, *, count: int
) -> tuple[DataFrame, dict[str, int]]:
    """Returns ids with their kind, and how many of each kind."""
    kinds = dict.fromkeys(_KINDS, 0)
    if old is None:
        return keys.select(ID, F.lit("new").alias(_KIND)), {**kinds, "new": count}
    kind = (
        F.when(F.col(VERSION).isNull(), "deleted")
        .when(F.col(_OLD).isNull(), "new")
        .when(F.col(VERSION) == F.col(_OLD), "unchanged")
        .otherwise("changed")
    )
    changes = keys.join(old, ID, "full_outer").select(ID, kind.alias(_KIND))
    rows = changes.groupBy(_KIND).count().collect()
    return changes, {**kinds, **{row[_KIND]: row["count"] for row in rows}}


def _write_vectors(rows: DataFrame, table: Export, path: str, *, expected: int) -> None:
    """Writes rows with sound vectors, as many as were found to be new or changed."""
    observation = Observation("e5spark_export")
    counts = (F.count("*").alias("rows"), F.count_if(table.is_sound).alias("sound"))
    rows = table.finished(rows.observe(observation, *counts))
    if expected == 0:
        rows = rows.limit(0)
    write_path(rows, path, format="parquet", options=parquet_options([VECTOR]))
    if expected == 0:
        return
    written, sound = (int(observation.get[name] or 0) for name in ("rows", "sound"))
    if sound != written:
        raise InputError(
            f"{written - sound} rows of {table.sink.name} have the status ok and no vector of "
            f"{table.manifest.dim} components; the export is not complete. Embed them again."
        )
    if written != expected:
        raise TransientError(
            f"{table.sink.name} changed while it was exported: {expected} rows were to be written, "
            f"and there were {written}. Start the same command again."
        )


def _reconciled(by_status: Mapping[str, int], kinds: Mapping[str, int]) -> dict[str, int]:
    rows, ok = sum(by_status.values()), by_status["ok"]
    exported = kinds["new"] + kinds["changed"]
    if exported + kinds["unchanged"] != ok:
        raise E5SparkError(
            f"{exported} rows were exported and {kinds['unchanged']} are unchanged, but {ok} have "
            "the status ok. This is a bug in e5spark."
        )
    return {"rows": rows, "ok": ok, "not_ok": rows - ok, "exported": exported, **kinds}
