"""Idempotent commits to a Delta table: the same commit, tried again, changes nothing."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from e5spark.errors import TransientError
from e5spark.names import quoted, redacted
from e5spark.tables.ledger.manifest import bare_type
from e5spark.tables.ledger.records import Record
from e5spark.tables.sinks.delta_table import DeltaTable
from e5spark.tables.spark_errors import condition, reason, spark_errors
from e5spark.tables.spark_settings import spark_settings

log = logging.getLogger("e5spark")

_ATTEMPTS = 5
_CONFLICTS = ("DELTA_CONCURRENT_", "DELTA_METADATA_CHANGED", "DELTA_PROTOCOL_CHANGED")
_VERSION = "0"


@dataclass(frozen=True, kw_only=True)
class Commit:
    """One commit, as Delta's log names it.

    Attributes:
        record: The name of its record in the ledger.
        app: Its transaction id; Delta silently skips a transaction that its log has already.
        metadata: For the table's history.
    """

    record: str
    app: str
    metadata: str

    @classmethod
    def of(cls, record: Record, table: str, fingerprint: str) -> "Commit":
        """Returns the commit of a record.

        The transaction id includes the names of the staged files, which Spark chooses at random:
        a record of a later ledger, whose epochs start from 1 again, is not mistaken for this one.
        """
        identity = json.dumps([table, fingerprint, record.name, record.files, record.includes])
        epoch, _, number = record.name.partition("-")
        metadata = {
            "e5spark.fingerprint": fingerprint,
            "e5spark.epoch": int(epoch),
            "e5spark.chunk": int(number),
            "e5spark.kind": record.kind,
        }
        return cls(
            record=record.name,
            app=f"e5spark/{hashlib.sha256(identity.encode()).hexdigest()}",
            metadata=json.dumps(metadata),
        )


def append(df: DataFrame, table: DeltaTable, commit: Commit, *, options: Mapping[str, str]) -> bool:
    """Appends rows by name, and returns whether that changed the table.

    Raises:
        TransientError: If other writers won every attempt.
        InputError: If the table cannot take the rows.
    """
    commit_options = {
        "txnAppId": commit.app,
        "txnVersion": _VERSION,
        "userMetadata": commit.metadata,
        "optimizeWrite": "false",
        "mergeSchema": "false",
    }

    def write() -> bool:
        before = table.version()
        df.writeTo(table.name).options(**{**options, **commit_options}).append()
        return table.has_commit(commit.metadata, after=before)

    return _committed(write, table, commit)


def merge(
    df: DataFrame, table: DeltaTable, commit: Commit, *, clauses: str, codec: str = "zstd"
) -> bool:
    """Merges rows, ``s`` in the clauses, into the table, ``t``; returns whether it changed.

    Raises:
        TransientError: If other writers won every attempt.
        InputError: If the table cannot take the rows.
    """
    spark = df.sparkSession
    view = f"__e5spark_{commit.app[-16:]}"
    settings = {
        "spark.databricks.delta.write.txnAppId": commit.app,
        "spark.databricks.delta.write.txnVersion": _VERSION,
        "spark.databricks.delta.commitInfo.userMetadata": commit.metadata,
        # The rows are in files that nobody changes, so Delta need not copy them first.
        "spark.databricks.delta.merge.materializeSource": "none",
        "spark.sql.parquet.compression.codec": codec,
    }

    def write() -> bool:
        # A MERGE that Delta skips returns no counts.
        merged = spark.sql(f"MERGE INTO {table.name} AS t USING {view} AS s {clauses}")
        return bool(merged.collect())

    df.createOrReplaceTempView(view)
    try:
        with spark_settings(spark, settings):
            return _committed(write, table, commit)
    finally:
        spark.catalog.dropTempView(view)


def change_schema(table: DeltaTable, schema: StructType, *, options: Mapping[str, str]) -> None:
    """Gives the table the columns of a schema, in one commit; a repetition changes nothing.

    Further columns are added to the log alone; wider types rewrite the files. Columns that are not
    in the schema stay.

    Raises:
        TransientError: If other writers won every attempt.
        InputError: If the table refuses.
    """

    def write() -> bool:
        rows = table.rows()
        types = {field.name: bare_type(field.dataType.jsonValue()) for field in rows.schema}
        added = [field for field in schema if field.name not in types]
        wider = {
            field.name: F.col(quoted(field.name)).cast(field.dataType)
            for field in schema
            if types.get(field.name) not in (None, bare_type(field.dataType.jsonValue()))
        }
        if wider:
            nulls = {field.name: F.lit(None).cast(field.dataType) for field in added}
            rows.withColumns({**wider, **nulls}).write.format("delta").mode("overwrite").options(
                **{**options, "overwriteSchema": "true"}
            ).saveAsTable(table.name)
        elif added:
            empty = rows.sparkSession.createDataFrame([], StructType(added))
            empty.writeTo(table.name).option("mergeSchema", "true").append()
        return bool(wider or added)

    retried(write, f"The output {table.name}")


def retried(write: Callable[[], bool], what: str) -> bool:
    """Returns what a write returns; tries again if another writer was first.

    Raises:
        TransientError: If another writer won every attempt.
        InputError: If the table refuses.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with spark_errors(f"{what} cannot be written"):
                return write()
        except Exception as error:  # py4j has errors that PySpark does not wrap
            if not condition(error).startswith(_CONFLICTS):
                raise
            if attempt == _ATTEMPTS:
                raise TransientError(
                    f"{redacted(what)} was changed by others {attempt} times while this run wrote "
                    f"to it: {reason(error)} Start the same command again."
                ) from error
    raise AssertionError("unreachable")


def _committed(write: Callable[[], bool], table: DeltaTable, commit: Commit) -> bool:
    changed = retried(write, f"The output {table.name}")
    if not changed:
        log.warning(
            "Delta skipped commit %s to %s: the table has it already, from a run that was killed "
            "before it could note that. No row is duplicated.",
            commit.record,
            redacted(table.name),
        )
    return changed
