"""The commits to a table: a record of each, and the rows that are staged for it.

A record is the commit: before it is put, its rows do not exist; from then on they are never
embedded again. ``tables.home`` shows where everything lies.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal, Protocol

from e5spark.errors import ConflictError
from e5spark.tables.ledger.failpoints import failpoint
from e5spark.tables.ledger.layout import (
    COMMITS,
    DONE,
    FORMAT,
    STAGING,
    WORK,
    dumped,
    has_commits,
    numbers,
    read_document,
)
from e5spark.tables.ledger.manifest import MANIFEST, Manifest, check_same, read_manifest
from e5spark.tables.storage.protocol import Storage

Kind = Literal["append", "deferred", "replace"]
_KEPT = 100  # of done, which every run lists
_INSTANTS = (("written", "recorded"), ("rewritten", "replacing"))


class Lock(Protocol):
    """The part of ``tables.lock`` that a ledger needs."""

    @property
    def epoch(self) -> int:
        """The number of this run: each holder's is higher than those before."""

    def check(self) -> None:
        """Raises ``ConflictError`` once another run has taken the lock over."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One commit.

    Attributes:
        name: The epoch of the run that made it and a number of its own; they sort by age.
        kind: ``append``: rows of new ids, visible at once. ``deferred``: rows that wait for the
            ``replace`` that includes them. ``replace``: makes those visible and other rows go, as
            one step.
        files: Its staged Parquet files, from the table's root.
        rows: How many rows they hold.
        counts: What became of its texts.
        removes: Files of the table that go; Parquet only.
        includes: The names of the held records that become visible with it.
    """

    name: str
    kind: Kind
    files: tuple[str, ...] = ()
    rows: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    removes: tuple[str, ...] = ()
    includes: tuple[str, ...] = ()
    format: int = FORMAT


class Ledger:
    """The ledger of one table, while its lock is held; its methods may run in several threads.

    Every method that changes what is committed first asks the lock whether it is held still.
    """

    def __init__(self, storage: Storage, lock: Lock, *, used: int = 0) -> None:
        """Takes the ledger of a storage.

        Args:
            storage: The table's directory.
            lock: Its lock.
            used: The highest number that this run has given to a record already.
        """
        self.storage = storage
        self._lock = lock
        self._used = used

    @property
    def epoch(self) -> int:
        """The number of this run."""
        return self._lock.epoch

    def name(self, number: int) -> str:
        """Returns what a record of this run is called."""
        return f"{self.epoch:05d}-{self._used + number:05d}"

    def after(self, number: int) -> "Ledger":
        """Returns the same ledger for a further update of this run, after a record's number."""
        return Ledger(self.storage, self._lock, used=self._used + number)

    def staging(self, name: str) -> str:
        """Returns the directory of a record's staged files, from the table's root."""
        return f"{STAGING}/{name}"

    @property
    def work(self) -> str:
        """The directory of what this run has to do, from the table's root."""
        return f"{WORK}/{self.epoch:05d}"

    def staged(self, name: str) -> tuple[str, ...]:
        """Returns the Parquet files that a finished Spark job has staged for a record."""
        directory = self.staging(name)
        files = sorted(self.storage.list(directory))
        return tuple(f"{directory}/{file}" for file in files if file.endswith(".parquet"))

    @property
    def manifest(self) -> Manifest:
        """What the vectors are, once the ledger has begun.

        Raises:
            ConflictError: If nobody can tell any more.
        """
        manifest = read_manifest(self.storage)
        if manifest is None:
            raise ConflictError(
                f"{self.storage.root} has lost {MANIFEST}, which says what its vectors are. Put it "
                "back, or give a new output."
            )
        return manifest

    def check(self, manifest: Manifest) -> None:
        """Makes sure that no other vectors than those of this manifest are committed.

        Raises:
            ConflictError: If there are; the message names the parts that differ.
        """
        if has_commits(self.storage):
            check_same(self.manifest, manifest)

    def begin(self, manifest: Manifest) -> None:
        """Writes down what the vectors are, unless that of a run that committed something stands.

        Raises:
            ConflictError: If other vectors are committed.
        """
        self._lock.check()
        self.check(manifest)
        if not has_commits(self.storage):
            self.storage.put(MANIFEST, dumped(asdict(manifest)))

    def pending(self, *kinds: Kind) -> list[Record]:
        """Returns the records of these kinds that are not visible yet, by age."""
        records = [self._read(COMMITS, name) for name in self._listed(COMMITS)]
        return [record for record in records if record is not None and record.kind in kinds]

    def is_lost(self, record: Record) -> bool:
        """Whether a record came too late: another run had taken over and swept its rows away."""
        return self.storage.read(self._anchor(record)) is None

    @property
    def has_finished(self) -> bool:
        """Whether any commit has become visible ever."""
        return bool(self.storage.list(DONE))

    def commit(self, record: Record) -> None:
        """Makes a record durable: from now on its rows are the table's.

        Raises:
            ConflictError: If another run has taken the table over.
        """
        first, then = _INSTANTS[record.kind == "replace"]
        # What a sweep takes with the rows: a record without it was put after the sweep.
        self.storage.put(self._anchor(record), b"")
        failpoint(first)
        self._lock.check()
        self.storage.put(f"{COMMITS}/{record.name}.json", dumped(asdict(record)))
        # A run that was overtaken between the two lines must not go on to publish.
        self._lock.check()
        failpoint(then)

    def included(self, record: Record) -> list[Record]:
        """Returns the held records that a replacement makes visible and that still wait."""
        found = [self._read(COMMITS, f"{name}.json") for name in record.includes]
        return [held for held in found if held is not None]

    def close(self, record: Record) -> None:
        """Notes that a record is visible, with those it includes; they are not touched again."""
        for each in (*self.included(record), record):
            self._lock.check()
            self.storage.rename(f"{COMMITS}/{each.name}.json", f"{DONE}/{each.name}.json")
            self.storage.delete(self.staging(each.name))

    def discard(self, record: Record) -> None:
        """Forgets a record that nobody can see, and its rows."""
        self._lock.check()
        self.storage.delete(f"{COMMITS}/{record.name}.json")
        self.storage.delete(self.staging(record.name))

    def sweep(self) -> None:
        """Removes staged rows and work lists, once nothing is pending, and old records.

        All of this run's and of those before: what of theirs appears now is of a run that was
        overtaken, and its rows may be embedded again by this one. None of a later run, which may
        have taken over since the lock was looked at. The last records stay, as what has become
        visible is not read again; that there are any says that the table has rows, or had.
        """
        self._lock.check()
        for directory in (STAGING, WORK):
            for name in self.storage.list(directory):
                if numbers(name)[:1] <= [self.epoch]:
                    self.storage.delete(f"{directory}/{name}")
        for name in self._listed(DONE)[:-_KEPT]:
            self.storage.delete(f"{DONE}/{name}")

    def _listed(self, directory: str) -> list[str]:
        """The names of records, by age: after epoch 99999 their digits do not line up."""
        names = [name for name in self.storage.list(directory) if name.endswith(".json")]
        return sorted(names, key=numbers)

    def _anchor(self, record: Record) -> str:
        return f"{self.staging(record.name)}/_recorded"

    def _read(self, directory: str, file: str) -> Record | None:
        document = read_document(self.storage, f"{directory}/{file}")
        if document is None:
            return None
        lists = {key: tuple(document[key]) for key in ("files", "removes", "includes")}
        return Record(**{**document, **lists})
