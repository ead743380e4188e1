"""A run under the lock of its table, and the record of how it ended."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime

from e5spark.errors import E5SparkError
from e5spark.names import redacted
from e5spark.tables.ledger.ledger import Ledger
from e5spark.tables.ledger.lock import acquire
from e5spark.tables.ledger.records import RunRecord
from e5spark.tables.storage.protocol import Storage


@contextmanager
def locked(
    storage: Storage, command: str, versions: Mapping[str, str]
) -> Iterator[tuple[Ledger, dict[str, int]]]:
    """Holds the lock of a table, and records how the run ends; a run that is killed has no record.

    Args:
        storage: The table's directory.
        command: The command that runs.
        versions: Of the driver's packages.

    Yields:
        The ledger, and the counts of the run, to be filled in.

    Raises:
        ConflictError: If another run holds the lock, or takes it over.
    """
    with acquire(storage) as lock:
        ledger = Ledger(storage, lock)
        with _recorded(ledger, command, versions) as counts:
            yield ledger, counts


@contextmanager
def _recorded(
    ledger: Ledger, command: str, versions: Mapping[str, str]
) -> Iterator[dict[str, int]]:
    counts: dict[str, int] = {}
    record = RunRecord(
        epoch=ledger.epoch,
        command=command,
        started_at=utc_now(),
        ended_at=utc_now(),
        outcome="done",
        versions=versions,
    )
    try:
        yield counts
    except BaseException as error:
        # Other errors may quote a row.
        message = redacted(str(error)) if isinstance(error, E5SparkError) else ""
        failure = replace(
            record,
            ended_at=utc_now(),
            outcome="failed",
            error=type(error).__name__,
            message=message,
        )
        with suppress(Exception):  # the lock is lost, or the store: the error itself says so
            ledger.keep_run(failure)
        raise
    ledger.keep_run(replace(record, ended_at=utc_now(), counts=counts))


def utc_now() -> str:
    """Returns this moment in ISO 8601, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
