"""The state of a table as anybody can read it, without its lock; damaged files are named."""

from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from e5spark.errors import ConflictError
from e5spark.names import redacted
from e5spark.tables.ledger.documents import read_document
from e5spark.tables.ledger.holder import Holder, last_holder
from e5spark.tables.ledger.layout import (
    COMMITS,
    DONE,
    MANIFEST,
    RUNS,
    STAGING,
    STREAMS,
    numbers,
    record_files,
)
from e5spark.tables.ledger.manifest import Manifest, read_manifest
from e5spark.tables.ledger.records import Record, RunRecord, read_figures
from e5spark.tables.storage.protocol import Storage

_REQUESTS = 16  # concurrent requests to the store

Document = TypeVar("Document")


@dataclass(frozen=True, kw_only=True)
class State:
    """The state of a table. While a run writes, its parts may be of slightly different moments.

    Attributes:
        manifest: What the vectors are; None if there is none, or it is damaged.
        holder: The last claim of the lock; None if nobody has ever claimed it.
        runs: How the latest runs ended, oldest first. Runs that were killed, and runs of earlier
            releases, have no such record.
        commits: The number of visible commits of each epoch, of the records that are kept.
        last_commit_at: When the last visible commit was recorded; None if there is none.
        pending: Records that are not visible yet, oldest first.
        lost: The names of records that the next run removes with their rows: they came too late,
            after another run had taken over.
        staged: The names under which rows are staged that no record has.
        streams: How many stream checkpoints are tied to the table.
        problems: What is damaged or missing; one sentence or more for each file.
    """

    manifest: Manifest | None
    holder: Holder | None
    runs: tuple[RunRecord, ...]
    commits: Mapping[int, int]
    last_commit_at: datetime | None
    pending: tuple[Record, ...]
    lost: tuple[str, ...]
    staged: tuple[str, ...]
    streams: int
    problems: tuple[str, ...]

    @property
    def has_begun(self) -> bool:
        """Whether any run of e5spark has ever begun here."""
        return self.holder is not None or bool(self.commits) or bool(self.pending)

    @property
    def is_held(self) -> bool:
        """Whether a run may be writing now."""
        holder = self.holder
        return holder is not None and not holder.is_released and holder.is_alive is not False


def read_state(storage: Storage, *, runs: int = 10) -> State:
    """Returns the state of a table, which need not exist.

    Args:
        storage: The table's directory.
        runs: How many of the latest runs to read.

    Raises:
        TransientError: If the storage fails.
    """
    problems: list[str] = []
    done = record_files(storage, DONE)
    manifest = _read(lambda: read_manifest(storage), problems)
    _read(lambda: read_figures(storage), problems)
    records = _read_all(storage, COMMITS, record_files(storage, COMMITS), Record, problems)
    kept = record_files(storage, RUNS)[-runs:]
    # A record without a directory of staged files was written after a later run had removed it.
    staged = storage.list(STAGING)
    recorded = {record.name for record in records}
    holder = _read(lambda: last_holder(storage), problems)
    if holder is not None and holder.problem and not holder.is_released:
        problems.append(holder.problem)
    if manifest is None and not problems and (done or records):
        problems.append(
            f"{redacted(storage.root)} has lost {MANIFEST}, which says what its vectors are. "
            "Restore it from a backup, or give a new output."
        )
    return State(
        manifest=manifest,
        holder=holder,
        runs=tuple(_read_all(storage, RUNS, kept, RunRecord, problems)),
        commits=Counter(numbers(name)[0] for name in done if numbers(name)),
        last_commit_at=storage.modified(f"{DONE}/{done[-1]}") if done else None,
        pending=tuple(record for record in records if record.name in staged),
        lost=tuple(sorted(recorded - set(staged))),
        staged=tuple(sorted(set(staged) - recorded)),
        streams=len(storage.list(STREAMS)),
        problems=tuple(problems),
    )


def _read(read: Callable[[], Document | None], problems: list[str]) -> Document | None:
    """Returns what is read; None if it is damaged, which is added to the problems."""
    try:
        return read()
    except ConflictError as error:
        problems.append(str(error))
        return None


def _read_all(
    storage: Storage,
    directory: str,
    names: list[str],
    kind: type[Document],
    problems: list[str],
) -> list[Document]:
    """Returns the documents that are still there and not damaged, in the order of the names."""

    def read(name: str) -> Document | None:
        path = f"{directory}/{name}"
        return _read(lambda: read_document(storage, path, kind), problems)

    with ThreadPoolExecutor(_REQUESTS, thread_name_prefix="e5spark-state") as pool:
        return [document for document in pool.map(read, names) if document is not None]
