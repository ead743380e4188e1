"""The commits to a table: a record of every commit, and the rows that are staged for it.

The record is the commit: before it is written its rows do not exist; afterwards they are never
embedded again. ``ledger.layout`` shows where everything is.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, Protocol

from e5spark.errors import ConflictError
from e5spark.names import redacted
from e5spark.tables.ledger.documents import RESTORE, dumped, read_document
from e5spark.tables.ledger.failpoints import failpoint
from e5spark.tables.ledger.layout import (
    COMMITS,
    DONE,
    FIGURES,
    MANIFEST,
    RUNS,
    STAGING,
    WORK,
    has_commits,
    numbers,
    record_files,
)
from e5spark.tables.ledger.manifest import Manifest, check_same, read_manifest
from e5spark.tables.ledger.records import Kind, Record, RunFigures, RunRecord, read_figures
from e5spark.tables.storage.protocol import Storage

_DONE_RECORDS = 100  # that are kept; every run lists them
_RUN_RECORDS = 100
# Before and after a record is written, by whether it replaces rows.
_FAILPOINTS = {False: ("written", "recorded"), True: ("rewritten", "replacing")}


class HeldLock(Protocol):
    """The part of a lock that a ledger needs."""

    @property
    def epoch(self) -> int:
        """The number of this run; earlier runs have lower numbers."""

    def check(self) -> None:
        """Raises ``ConflictError`` once another run has taken the lock over."""


class Ledger:
    """The ledger of one table while its lock is held; its methods may run in several threads.

    Every method that changes what is committed first checks that the lock is still held.
    """

    def __init__(self, storage: Storage, lock: HeldLock, *, used: int = 0) -> None:
        """Opens the ledger of a table.

        Args:
            storage: The table's directory.
            lock: Its lock.
            used: The highest record number that this run has used already.
        """
        self.storage = storage
        self._lock = lock
        self._used = used

    @property
    def epoch(self) -> int:
        """The number of this run."""
        return self._lock.epoch

    def name(self, number: int) -> str:
        """Returns the name of a record of this run."""
        return f"{self.epoch:05d}-{self._used + number:05d}"

    def after(self, number: int) -> "Ledger":
        """Returns this ledger for the run's next sync, which numbers its records from here on."""
        return Ledger(self.storage, self._lock, used=self._used + number)

    def work_path(self, part: str) -> str:
        """Returns the path, for Spark, of a part of this run's work lists."""
        return self._path(f"{WORK}/{self.epoch:05d}/{part}")

    def staging_path(self, name: str) -> str:
        """Returns the path, for Spark, of the directory of a record's staged files."""
        return self._path(f"{STAGING}/{name}")

    def paths(self, records: Iterable[Record]) -> list[str]:
        """Returns the paths, for Spark, of the staged files of some records."""
        return [self._path(file) for record in records for file in record.files]

    def staged_files(self, name: str) -> tuple[str, ...]:
        """Returns the Parquet files that a finished Spark job has staged for a record, sorted.

        They are relative to the table's directory, as a record lists them.
        """
        directory = f"{STAGING}/{name}"
        files = sorted(self.storage.list(directory))
        return tuple(f"{directory}/{file}" for file in files if file.endswith(".parquet"))

    @property
    def manifest(self) -> Manifest:
        """What the vectors are; it exists once ``begin`` has run.

        Raises:
            ConflictError: If the manifest is missing.
        """
        manifest = read_manifest(self.storage)
        if manifest is None:
            raise ConflictError(
                f"{redacted(self.storage.root)} has lost {MANIFEST}, which says what its vectors "
                "are. Restore it from a backup, or give a new output."
            )
        return manifest

    def check(self, manifest: Manifest) -> None:
        """Checks that all committed vectors match this manifest.

        Raises:
            ConflictError: If they do not; the message names the parts that differ.
        """
        if has_commits(self.storage):
            check_same(self.manifest, manifest)

    def begin(self, manifest: Manifest) -> None:
        """Writes the manifest, unless a run that committed something has written it.

        Raises:
            ConflictError: If other vectors are committed.
        """
        self._lock.check()
        self.check(manifest)
        if not has_commits(self.storage):
            self.storage.put(MANIFEST, dumped(asdict(manifest)))

    def add_canaries(self, canaries: Mapping[str, Any]) -> None:
        """Writes canaries into the manifest; all else in it stays as it is.

        Raises:
            ConflictError: If another run has taken the table over.
        """
        self._update_manifest("canaries", canaries)

    def change_schema(self, schema: Mapping[str, Any]) -> None:
        """Writes another schema of the table into the manifest; all else in it stays as it is.

        Raises:
            ConflictError: If another run has taken the table over.
        """
        self._update_manifest("schema", schema)

    def last_figures(self) -> Mapping[str, Any] | None:
        """Returns the figures that ``keep_figures`` has kept; None if there are none.

        Raises:
            ConflictError: If the file is damaged, or a later release of e5spark wrote it.
        """
        kept = read_figures(self.storage)
        return None if kept is None else kept.figures

    def keep_figures(self, figures: Mapping[str, Any]) -> None:
        """Keeps the figures of this run's vectors for the next run."""
        self._lock.check()
        self.storage.put(FIGURES, dumped(asdict(RunFigures(epoch=self.epoch, figures=figures))))

    def keep_run(self, run: RunRecord) -> None:
        """Keeps how this run ended, and removes the oldest of such records."""
        self._lock.check()
        self.storage.put(f"{RUNS}/{run.epoch:05d}.json", dumped(asdict(run)))
        for name in record_files(self.storage, RUNS)[:-_RUN_RECORDS]:
            self.storage.delete(f"{RUNS}/{name}")

    def pending(self, *kinds: Kind) -> list[Record]:
        """Returns the records of these kinds that are not visible yet, oldest first."""
        records = [self._read(name) for name in record_files(self.storage, COMMITS)]
        return [record for record in records if record is not None and record.kind in kinds]

    def is_lost(self, record: Record) -> bool:
        """Returns whether a record came too late: another run took over and removed its rows."""
        return self.storage.read(self._anchor(record)) is None

    @property
    def has_finished(self) -> bool:
        """Whether any commit has ever become visible."""
        return bool(self.storage.list(DONE))

    def unrecorded(self, names: Iterable[str]) -> set[str]:
        """Returns the names, among these, that belong to no record of this ledger.

        A name that is older than every record in ``done`` may have belonged to one that was
        removed since, and is not returned.
        """
        done = [name.removesuffix(".json") for name in record_files(self.storage, DONE)]
        recorded = {
            *done,
            *(name.removesuffix(".json") for name in record_files(self.storage, COMMITS)),
        }
        oldest = numbers(done[0]) if len(done) >= _DONE_RECORDS else []
        return {name for name in names if name not in recorded and numbers(name) >= oldest}

    def record(self, record: Record) -> None:
        """Writes a record: from now on its rows belong to the table.

        Raises:
            ConflictError: If another run has taken the table over.
        """
        before, after = _FAILPOINTS[record.kind == "replace"]
        # A sweep removes this file with the rows: a record without it was written after the sweep.
        self.storage.put(self._anchor(record), b"")
        failpoint(before)
        self._lock.check()
        self.storage.put(f"{COMMITS}/{record.name}.json", dumped(asdict(record)))
        # A run that was overtaken since the first check must not publish.
        self._lock.check()
        failpoint(after)

    def included(self, record: Record) -> list[Record]:
        """Returns the deferred records that a replacement includes and that are not closed yet.

        Raises:
            ConflictError: If one is neither pending nor closed: its rows would be lost.
        """
        records = {name: self._read(f"{name}.json") for name in record.includes}
        missing = [name for name, deferred in records.items() if deferred is None]
        lost = {f"{name}.json" for name in missing} - set(
            self.storage.list(DONE) if missing else ()
        )
        if lost:
            raise ConflictError(
                f"{redacted(self.storage.root)}/{COMMITS} has lost {min(lost)}, which "
                f"{record.name} includes. {RESTORE}"
            )
        return [self.whole(deferred) for deferred in records.values() if deferred is not None]

    def whole(self, record: Record) -> Record:
        """Returns a record whose rows are to become visible.

        Raises:
            ConflictError: If it has rows and no file of them.
        """
        if record.rows and not record.files:
            raise ConflictError(
                f"{redacted(self.storage.root)}/{COMMITS}/{record.name}.json is damaged: it has "
                f"{record.rows} rows and no files. {RESTORE}"
            )
        return record

    def close(self, record: Record) -> None:
        """Marks a record and the records that it includes as visible; from then on, as final."""
        for closed in (*self.included(record), record):
            self._lock.check()
            self.storage.rename(f"{COMMITS}/{closed.name}.json", f"{DONE}/{closed.name}.json")
            self.storage.delete(f"{STAGING}/{closed.name}")

    def discard(self, record: Record) -> None:
        """Removes a record that was never visible, and its rows."""
        self._lock.check()
        self.storage.delete(f"{COMMITS}/{record.name}.json")
        self.storage.delete(f"{STAGING}/{record.name}")

    def sweep(self) -> None:
        """Removes staged rows and work lists, once nothing is pending, and old records.

        It covers this run and earlier runs: what appears there later belongs to a run that was
        overtaken, and this run may embed its rows again. It leaves later runs alone: one of them
        may have taken over since the lock was checked. The latest records are kept, although
        visible records are not read again: their presence says that the table has, or had, rows.
        """
        self._lock.check()
        for directory in (STAGING, WORK):
            for name in self.storage.list(directory):
                if numbers(name)[:1] <= [self.epoch]:
                    self.storage.delete(f"{directory}/{name}")
        for name in record_files(self.storage, DONE)[:-_DONE_RECORDS]:
            self.storage.delete(f"{DONE}/{name}")

    def _update_manifest(self, key: str, value: Mapping[str, Any]) -> None:
        stored = self.manifest  # checked: what follows reads the same file
        self._lock.check()
        document = json.loads(self.storage.read(MANIFEST) or dumped(asdict(stored)))
        self.storage.put(MANIFEST, dumped({**document, key: value}))

    def _path(self, name: str) -> str:
        return f"{self.storage.root}/{name}"

    def _anchor(self, record: Record) -> str:
        return f"{STAGING}/{record.name}/_recorded"

    def _read(self, file: str) -> Record | None:
        record = read_document(self.storage, f"{COMMITS}/{file}", Record)
        if record is not None and f"{record.name}.json" != file:
            raise ConflictError(
                f"{redacted(self.storage.root)}/{COMMITS}/{file} is the record {record.name}: it "
                "was renamed or copied. Give it its name again, or remove the copy."
            )
        return record
