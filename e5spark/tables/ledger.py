"""What e5spark knows of a table it writes: its manifest, and a record of each commit.

Everything lies under ``_e5spark`` in the table's directory, which readers of Parquet and Delta pass
over::

    manifest.json            what the vectors are; created once, checked by every run
    lock/                    one run at a time
    streams/<token>.json     a checkpoint whose stream is read into this table
    work/<epoch>/            what a run has to embed
    staging/<record>/        rows that are embedded but not visible yet, as Parquet files
    commits/<record>.json    recorded and not yet visible: whoever holds the lock finishes it
    done/<record>.json       recorded and visible; the last ones

A record is the commit: before it is put, its rows do not exist; from then on they are never
embedded again. Each document carries the format version it was written in.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from e5spark.errors import ConflictError, E5SparkError
from e5spark.tables.faults import instant
from e5spark.tables.storage import Storage

HOME = "_e5spark"
FORMAT = 1
_MANIFEST = f"{HOME}/manifest.json"
_COMMITS, _DONE = f"{HOME}/commits", f"{HOME}/done"
_STAGING, _WORK = f"{HOME}/staging", f"{HOME}/work"

Kind = Literal["append", "hold", "replace"]
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
class Manifest:
    """What the vectors of a table are.

    Attributes:
        fingerprint: The digest of ``parts``.
        parts: What makes these vectors comparable; see ``e5spark.fingerprint``.
        schema: The table's, as Spark's JSON.
        dim: Components of a vector.
        id: The column that names a row; None if there is none.
        table: The kind of table, such as ``parquet``.
        versions: The packages that began the table.
    """

    fingerprint: str
    parts: Mapping[str, Any]
    schema: Mapping[str, Any]
    dim: int
    id: str | None
    table: str
    versions: Mapping[str, str]
    format: int = FORMAT


@dataclass(frozen=True, kw_only=True)
class Record:
    """One commit.

    Attributes:
        name: The epoch of the run that made it and a number of its own; they sort by age.
        kind: ``append``: rows of new ids, visible at once. ``hold``: rows that wait for the
            ``replace`` that absorbs them. ``replace``: makes those visible and other rows go, as
            one step.
        files: Its staged Parquet files, from the table's root.
        rows: How many rows they hold.
        counts: What became of its texts.
        removes: Files of the table that go; Parquet only.
        absorbs: The names of the held records that become visible with it.
    """

    name: str
    kind: Kind
    files: tuple[str, ...] = ()
    rows: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    removes: tuple[str, ...] = ()
    absorbs: tuple[str, ...] = ()
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
        return f"{_STAGING}/{name}"

    @property
    def work(self) -> str:
        """The directory of what this run has to do, from the table's root."""
        return f"{_WORK}/{self.epoch:05d}"

    def staged(self, name: str) -> tuple[str, ...]:
        """Returns the Parquet files that a finished Spark job has staged for a record."""
        directory = self.staging(name)
        files = sorted(self.storage.list(directory))
        return tuple(f"{directory}/{file}" for file in files if file.endswith(".parquet"))

    def begin(self, manifest: Manifest) -> None:
        """Makes sure that the table holds the vectors of this manifest, and none but those.

        Raises:
            ConflictError: If it holds others; the message names the parts that differ.
        """
        self._lock.check()
        if self.storage.create(_MANIFEST, _dumped(manifest)):
            return
        if self.has_finished or self.storage.list(_COMMITS):
            check_same(read_manifest(self.storage), manifest)
        else:  # of a run that never committed anything
            self.storage.put(_MANIFEST, _dumped(manifest))

    def pending(self, *kinds: Kind) -> list[Record]:
        """Returns the records of these kinds that are not visible yet, by age."""
        records = [self._read(_COMMITS, name) for name in self._listed(_COMMITS)]
        return [record for record in records if record is not None and record.kind in kinds]

    def is_lost(self, record: Record) -> bool:
        """Whether a record came too late: another run had taken over and swept its rows away."""
        return self.storage.read(self._anchor(record)) is None

    @property
    def has_finished(self) -> bool:
        """Whether any commit has become visible ever."""
        return bool(self.storage.list(_DONE))

    def commit(self, record: Record) -> None:
        """Makes a record durable: from now on its rows are the table's.

        Raises:
            ConflictError: If another run has taken the table over.
        """
        first, then = _INSTANTS[record.kind == "replace"]
        # What a sweep takes with the rows: a record without it was put after the sweep.
        self.storage.put(self._anchor(record), b"")
        instant(first)
        self._lock.check()
        self.storage.put(f"{_COMMITS}/{record.name}.json", _dumped(record))
        # A run that was overtaken between the two lines must not go on to publish.
        self._lock.check()
        instant(then)

    def absorbed(self, record: Record) -> list[Record]:
        """Returns the held records that a replacement makes visible and that still wait."""
        found = [self._read(_COMMITS, f"{name}.json") for name in record.absorbs]
        return [held for held in found if held is not None]

    def close(self, record: Record) -> None:
        """Notes that a record is visible, with those it absorbs; they are not touched again."""
        for each in (*self.absorbed(record), record):
            self._lock.check()
            self.storage.rename(f"{_COMMITS}/{each.name}.json", f"{_DONE}/{each.name}.json")
            self.storage.delete(self.staging(each.name))

    def discard(self, record: Record) -> None:
        """Forgets a record that nobody can see, and its rows."""
        self._lock.check()
        self.storage.delete(f"{_COMMITS}/{record.name}.json")
        self.storage.delete(self.staging(record.name))

    def sweep(self) -> None:
        """Removes all staged rows and work lists, once nothing is pending, and old records.

        Without exception: what appears now is of a run that was overtaken, and its rows may be
        embedded again by this one. The last records stay, as what has become visible is not read
        again; that there are any says that the table has rows, or had.
        """
        self._lock.check()
        self.storage.delete(_STAGING)
        self.storage.delete(_WORK)
        for name in self._listed(_DONE)[:-_KEPT]:
            self.storage.delete(f"{_DONE}/{name}")

    def _listed(self, directory: str) -> list[str]:
        """The names of records, by age: after epoch 99999 their digits do not line up."""
        names = [name for name in self.storage.list(directory) if name.endswith(".json")]
        return sorted(names, key=lambda name: [int(part) for part in re.findall(r"\d+", name)])

    def _anchor(self, record: Record) -> str:
        return f"{self.staging(record.name)}/_recorded"

    def _read(self, directory: str, file: str) -> Record | None:
        data = self.storage.read(f"{directory}/{file}") if file.endswith(".json") else None
        if data is None:
            return None
        document = _loaded(data, f"{directory}/{file}")
        lists = {key: tuple(document[key]) for key in ("files", "removes", "absorbs")}
        return Record(**{**document, **lists})


def read_manifest(storage: Storage) -> Manifest | None:
    """Returns the manifest of a table; None if it has none.

    Raises:
        ConflictError: If a later release of e5spark wrote it.
    """
    data = storage.read(_MANIFEST)
    return None if data is None else Manifest(**_loaded(data, _MANIFEST))


def is_begun(storage: Storage) -> bool:
    """Returns whether a run of e5spark has ever begun here, finished or not."""
    return bool(storage.list(HOME))


def check_same(stored: Manifest | None, wanted: Manifest) -> None:
    """Raises unless two manifests describe the same vectors in the same columns.

    Raises:
        ConflictError: If something differs; the message names it.
    """
    if stored is None:
        raise E5SparkError("The manifest vanished while its lock was held.")
    if stored.fingerprint != wanted.fingerprint:
        raise ConflictError(
            "The output holds other vectors, which must not be mixed with these: "
            f"{'; '.join(differences(stored.parts, wanted.parts))}. Run with what it was made "
            "with; or migrate: give a new output, and go over to it when it is complete."
        )
    if stored.table != wanted.table:
        raise ConflictError(
            f"The output is a {stored.table} table and not {wanted.table}; give output.format."
        )
    if stored.id != wanted.id:
        raise ConflictError(
            f"The output was written with input.id = {stored.id!r}, this run has "
            f"{wanted.id!r}; give the same id, or a new output."
        )
    before, after = _columns(stored.schema), _columns(wanted.schema)
    if before != after:
        gone = [f"{name} {kind}" for name, kind in before.items() if after.get(name) != kind]
        more = [f"{name} {kind}" for name, kind in after.items() if before.get(name) != kind]
        raise ConflictError(
            "The output has other columns than this run would write: it has "
            f"{', '.join(gone) or 'no others'}; this run has {', '.join(more) or 'no others'}"
            f"{'' if gone or more else ', in another order'}. Choose columns with input.keep, or "
            "give a new output."
        )


_WORDS = {"weights": "model weights", "recipe.prompts": "prompts", "recipe.dim": "dim"}


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Returns what differs between two fingerprints, part by part: "dim is 384, this run's 192"."""
    before, after = _flat(stored), _flat(wanted)
    parts = [part for part in {**before, **after} if before.get(part) != after.get(part)]
    return [
        f"{_WORDS.get(part, part.removeprefix('recipe.'))} is {_short(before.get(part))}, this "
        f"run's is {_short(after.get(part))}"
        for part in parts
    ]


def _flat(parts: Mapping[str, Any]) -> dict[str, Any]:
    recipe = parts.get("recipe", {})
    rest = {key: value for key, value in parts.items() if key != "recipe"}
    return {**rest, **{f"recipe.{key}": value for key, value in recipe.items()}}


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    is_hash = isinstance(value, str) and len(value) == 64
    return f"{value[:12]}..." if is_hash else text  # type: ignore[index]


def _columns(schema: Mapping[str, Any]) -> dict[str, str]:
    return {each["name"]: json.dumps(_nullable(each["type"])) for each in schema["fields"]}


def _nullable(kind: Any) -> Any:  # noqa: ANN401  # Spark's JSON
    """A type without what files do not keep: whether something may be null."""
    if isinstance(kind, dict):
        dropped = {"nullable", "containsNull", "valueContainsNull", "metadata"}
        return {key: _nullable(each) for key, each in kind.items() if key not in dropped}
    return [_nullable(each) for each in kind] if isinstance(kind, list) else kind


def _dumped(document: Manifest | Record) -> bytes:
    return json.dumps(asdict(document), indent=1, ensure_ascii=False).encode()


def _loaded(data: bytes, name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(data)
    if document["format"] > FORMAT:
        raise ConflictError(
            f"{name} has format {document['format']}; this e5spark knows up to {FORMAT}. "
            "Use the release that wrote it, or a later one."
        )
    return document
