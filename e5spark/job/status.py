"""What a table of vectors holds, and how it came about; no model is needed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from e5spark.errors import ConflictError, E5SparkError
from e5spark.job.config import JobConfig
from e5spark.job.metrics import STATUSES
from e5spark.job.run import open_output
from e5spark.model.fingerprint import in_words
from e5spark.names import quoted, redacted
from e5spark.tables.ledger.holder import Holder
from e5spark.tables.ledger.ledger import Ledger
from e5spark.tables.ledger.manifest import Manifest
from e5spark.tables.ledger.state import State, read_state
from e5spark.tables.sinks import catalog
from e5spark.tables.sinks.commit import Commits
from e5spark.tables.sinks.protocol import Sink, Size
from e5spark.tables.spark_errors import spark_errors
from e5spark.tables.storage.open import open_storage
from e5spark.tables.storage.protocol import Storage

_VECTOR, _STATUS = "embedding", "status"  # after the prefix of a text column


@dataclass(frozen=True, kw_only=True)
class Status:
    """What a table holds and how it came about.

    Attributes:
        output: The path or table as the user names it.
        kind: The kind of table that the job writes, such as ``parquet``.
        state: The state of the table; None if nothing has created the table yet.
        rows: Rows that are visible; None if they cannot be counted.
        statuses: Rows of each status, by column of vectors; ``not_embedded`` are rows that have no
            status, which only columns of the input table have.
        size: Its files; None if they cannot be listed.
        problems: What is damaged or missing; sentences.
    """

    output: str
    kind: str
    state: State | None = None
    rows: int | None = None
    statuses: Mapping[str, Mapping[str, int]]
    size: Size | None = None
    problems: tuple[str, ...] = ()

    @property
    def exists(self) -> bool:
        """Whether a run has begun to write the table."""
        return self.state is not None and self.state.has_begun

    @property
    def up_to_date_at(self) -> str | None:
        """When the table was last brought up to date, in UTC.

        It is the end of the last run of ``embed`` that was done; without a record of one, when the
        last commit was made; None if neither is known.
        """
        if self.state is None:
            return None
        ends = [
            run.ended_at
            for run in self.state.runs
            if (run.command, run.outcome) == ("embed", "done")
        ]
        return ends[-1] if ends else _iso(self.state.last_commit_at)

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON document."""
        state = self.state
        document: dict[str, Any] = {
            "output": redacted(self.output),
            "kind": self.kind,
            "exists": self.exists,
            "up_to_date_at": self.up_to_date_at,
            "rows": self.rows,
            "rows_by_status": {name: dict(counts) for name, counts in self.statuses.items()},
            "files": None if self.size is None else self.size.files,
            "bytes": None if self.size is None else self.size.bytes,
        }
        if state is not None:
            document |= {
                "vectors": _vectors(state.manifest),
                "runs": [asdict(run) for run in state.runs],
                "commits": {str(epoch): count for epoch, count in sorted(state.commits.items())},
                "pending": {
                    "records": len(state.pending),
                    "rows": sum(record.rows for record in state.pending),
                    "lost": len(state.lost),
                    "staged": len(state.staged),
                },
                "lock": lock_document(state.holder),
                "stream_checkpoints": state.streams,
            }
        return {**document, "problems": list(self.problems)}


def status(spark: SparkSession, config: JobConfig) -> Status:
    """Returns the status of the table that a job writes; nothing is changed.

    The rows are read once, in their columns of statuses alone. What is damaged becomes a problem
    of the status, and the rest is read all the same.

    Raises:
        ConflictError: If something exists there that e5spark did not write, or its state is gone.
        InputError: If the session cannot reach it, or does not have the format.
    """
    target, _ = open_output(spark, config)
    result = Status(output=target.name, kind=target.kind, statuses={})
    if not target.location:
        return result
    storage = open_storage(spark, target.location)
    state = read_state(storage)
    result = replace(result, state=state, problems=state.problems)
    if state.manifest is None:
        return result
    schema = StructType.fromJson(dict(state.manifest.schema))
    problems = list(state.problems)
    with _noted(problems):
        result = replace(result, size=target.size())
    with _noted(problems):
        rows, statuses = count_statuses(target.rows(schema), schema, target)
        result = replace(result, rows=rows, statuses=statuses)
    if not state.is_held:
        with _noted(problems):
            _check_recorded(storage, target, schema, state.manifest)
    return replace(result, problems=tuple(problems))


def count_statuses(
    df: DataFrame, schema: StructType, table: Sink
) -> tuple[int, dict[str, dict[str, int]]]:
    """Returns how many rows a table has, and how many of each status by column of vectors.

    Args:
        df: The rows.
        schema: The schema in the manifest.
        table: Where they are, for messages.

    Raises:
        InputError: If the rows cannot be read.
        ConflictError: If a file of the table is damaged.
    """
    columns = status_columns(schema)
    counts = [
        F.count(F.when(F.col(quoted(column)) == status, 1))
        for column in columns.values()
        for status in STATUSES
    ]
    with spark_errors(f"The output {table.name} cannot be read", output=table.location):
        rows, *numbers = df.agg(F.count("*"), *counts).collect()[0]
    statuses = {}
    for position, vector in enumerate(columns):
        start = position * len(STATUSES)
        by_status = dict(zip(STATUSES, numbers[start : start + len(STATUSES)], strict=True))
        statuses[vector] = {**by_status, "not_embedded": rows - sum(by_status.values())}
    return rows, statuses


def status_columns(schema: StructType) -> dict[str, str]:
    """Returns the column of statuses of each column of vectors."""
    vectors = [field.name for field in schema if catalog.FINGERPRINT in (field.metadata or {})]
    pairs = {vector: f"{vector.removesuffix(_VECTOR)}{_STATUS}" for vector in vectors}
    return {vector: name for vector, name in pairs.items() if name in schema.names}


def lock_document(holder: Holder | None) -> dict[str, Any]:
    """Returns what is known of a lock, for the JSON document."""
    if holder is None:
        return {"state": "free", "epoch": None}
    owner = holder.owner
    age = holder.heartbeat_age
    return {
        "state": "free" if holder.is_released else "held",
        "epoch": holder.epoch,
        "host": owner.host if owner else None,
        "pid": owner.pid if owner else None,
        "started_at": owner.started_at if owner else None,
        "ttl_seconds": owner.ttl if owner else None,
        "heartbeat_age_seconds": None if age is None else round(age, 1),
        "alive": False if holder.is_released else holder.is_alive,
    }


@contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    """Adds an error of e5spark to the problems in place of raising it."""
    try:
        yield
    except E5SparkError as error:
        problems.append(str(error))


def _check_recorded(storage: Storage, target: Sink, schema: StructType, manifest: Manifest) -> None:
    """Checks that all rows of the table are in the ledger, as a run does before it begins."""
    ledger = Ledger(storage, _NoLock())
    Commits(ledger, target, schema=schema, id=manifest.id).check_all_recorded()


class _NoLock:
    """Stands for the lock in a ledger that is only read."""

    epoch = 0

    def check(self) -> None:
        raise ConflictError("A status changes nothing. This is a bug in e5spark.")


def _vectors(manifest: Manifest | None) -> dict[str, Any] | None:
    if manifest is None:
        return None
    schema = StructType.fromJson(dict(manifest.schema))
    models = [(field.metadata or {}).get("e5spark.model", "") for field in schema]
    return {
        "model": next(filter(None, models), None),
        "dim": manifest.dim,
        "id": manifest.id,
        "columns": list(status_columns(schema)),
        "fingerprint": manifest.fingerprint,
        "fingerprint_parts": dict(manifest.parts),
        "fingerprint_in_words": in_words(manifest.parts),
        "created_with": dict(manifest.versions),
        "canaries": manifest.canaries is not None,
    }


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="seconds")
