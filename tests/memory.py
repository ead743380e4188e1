"""Tables in memory that die or fail at any storage operation, under the real ledger and lock."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from pyspark.sql.types import StructType

from e5spark.errors import TransientError
from e5spark.tables.ledger import lock as lock_module
from e5spark.tables.ledger.ledger import Ledger
from e5spark.tables.ledger.lock import acquire
from e5spark.tables.ledger.manifest import Manifest
from e5spark.tables.ledger.owner import own_tokens
from e5spark.tables.ledger.records import Record
from e5spark.tables.sinks import commit as commit_module
from e5spark.tables.sinks import parquet as parquet_module
from e5spark.tables.sinks.commit import Commits
from e5spark.tables.sinks.parquet import ParquetSink
from e5spark.tables.storage.paths import relative, vanished, visible

Rows = Mapping[int, str]
CHUNK = 2
MANIFEST = Manifest(
    fingerprint="one",
    parts={"recipe": {"long_text": "truncate"}},
    schema={"fields": [{"name": "id", "type": "long", "nullable": True, "metadata": {}}]},
    dim=4,
    id="id",
    table="memory",
    versions={},
)

CANARIES = {"texts": ["a"], "vectors": [["AACAPw=="]]}


class Died(BaseException):
    """The process is dead: no handler of it runs."""


@dataclass
class Disk:
    """What outlives a process: files, and a Delta table's log.

    Attributes:
        files: By name.
        rows: Of a Delta table: id and text, with duplicates if there are any.
        transactions: The ids that Delta's log has.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    rows: list[tuple[int, str]] = field(default_factory=list)
    transactions: set[str] = field(default_factory=set)


class MemoryStorage:
    """A storage on a disk in memory, of one process that meets its end at one operation.

    Attributes:
        operations: How many were begun.
    """

    def __init__(self, disk: Disk, *, at: int = 0, event: str = "", pause: Any = None) -> None:
        self.root = "memory"
        self.disk = disk
        self.operations = 0
        self._at, self._event, self._pause = at, event, pause
        self._dead = False

    def _do(self, effect: Callable[[], Any]) -> Any:
        if self._dead:
            raise Died
        self.operations += 1
        if self.operations != self._at:
            return effect()
        if self._event == "dies":
            self._dead = True
            raise Died
        if self._event == "fails":
            raise TransientError("The store does not answer.")
        if self._event == "pauses":
            self._pause()
        outcome = effect()
        if self._event == "loses the answer":
            raise TransientError("The store does not answer.")
        return outcome

    def transact(self, effect: Callable[[], None]) -> None:
        """Changes the Delta table as one step."""
        self._do(effect)

    def read(self, name: str) -> bytes | None:
        return self._do(lambda: self.disk.files.get(relative(name)))

    def put(self, name: str, data: bytes) -> None:
        self._do(lambda: self.disk.files.update({relative(name): data}))

    def create(self, name: str, data: bytes) -> bool:
        def effect() -> bool:
            return self.disk.files.setdefault(relative(name), data) is data

        return self._do(effect)

    def list(self, directory: str) -> list[str]:
        prefix = f"{relative(directory)}/" if directory else ""

        def effect() -> list[str]:
            inside = [name[len(prefix) :] for name in self.disk.files if name.startswith(prefix)]
            return visible({name.partition("/")[0] for name in inside})

        return self._do(effect)

    def modified(self, name: str) -> None:
        return None

    def rename(self, source: str, target: str) -> None:
        def effect() -> None:
            files = self.disk.files
            if source in files:
                files[target] = files.pop(source)
            elif target not in files:
                raise vanished(self.root, source, target)

        self._do(effect)

    def delete(self, name: str) -> None:
        def effect() -> None:
            for file in list(self.disk.files):
                if file == name or file.startswith(f"{name}/"):
                    del self.disk.files[file]

        self._do(effect)


class Frame(list):
    """Ids, with the methods of a DataFrame that Commits calls."""

    def select(self, *columns: Any) -> "Frame":
        return self

    def union(self, other: "Frame") -> "Frame":
        return Frame([*self, *other])

    def distinct(self) -> "Frame":
        return Frame(dict.fromkeys(self))


class Session:
    """Reads the ids of staged files."""

    def __init__(self, storage: MemoryStorage) -> None:
        self._storage = storage
        self.read = self

    def schema(self, schema: StructType) -> "Session":
        return self

    def parquet(self, *paths: str) -> Frame:
        names = [path.removeprefix("memory/") for path in paths]
        return Frame(id for name in names for id, _ in load(self._storage, name))

    def createDataFrame(self, rows: Sequence[Any], schema: StructType) -> Frame:
        return Frame(rows)


class MemoryParquet(ParquetSink):
    """The real publishing and the real check of files; rows are read and rewritten as JSON."""

    def __init__(self, storage: MemoryStorage) -> None:
        self.storage = storage
        self.name = self.location = storage.root
        self.options: Mapping[str, str] = {}
        self._table = ""

    def create(self, schema: StructType, provenance: Mapping[str, str]) -> None:
        pass

    def is_empty(self, schema: StructType) -> bool:
        return not self.visible(self.storage.disk)

    @staticmethod
    def visible(disk: Disk) -> list[tuple[int, str]]:
        names = [name for name in disk.files if "/" not in name]
        return [tuple(row) for name in names for row in json.loads(disk.files[name])]

    def stage_replacement(self, ledger: Ledger, record: Record, **named: Any) -> Record:
        stale = set(named["stale"]())
        names = [name for name in self.storage.list("") if not name.startswith("_")]
        loaded = {name: load(self.storage, name) for name in names}
        removes = [name for name, rows in loaded.items() if any(id in stale for id, _ in rows)]
        kept = [row for name in removes for row in loaded[name] if row[0] not in stale]
        files = stage(self.storage, ledger, record.name, kept) if removes else ()
        return replace(record, files=files, rows=len(kept), removes=tuple(removes))

    def stage_schema(self, ledger: Ledger, record: Record, **named: Any) -> Record:
        names = [name for name in self.storage.list("") if not name.startswith("_")]
        rows = [row for name in names for row in load(self.storage, name)]
        files = stage(self.storage, ledger, record.name, rows)
        return replace(record, files=files, rows=len(rows), removes=tuple(names))


class MemoryDelta:
    """A table whose log skips a transaction that it has; replaced rows go with the new ones."""

    name = location = "memory"
    kind = "delta"
    publishes_once = False
    options: Mapping[str, str] = {}

    def __init__(self, storage: MemoryStorage) -> None:
        self.storage = storage

    def create(self, schema: StructType, provenance: Mapping[str, str]) -> None:
        pass

    def check_files(self, ledger: Ledger) -> None:
        pass

    def is_empty(self, schema: StructType) -> bool:
        return not self.visible(self.storage.disk)

    @staticmethod
    def visible(disk: Disk) -> list[tuple[int, str]]:
        return list(disk.rows)

    def stage_replacement(self, ledger: Ledger, record: Record, **named: Any) -> Record:
        rows = [(id, "") for id in named["stale"]()]
        return replace(record, files=stage(self.storage, ledger, record.name, rows))

    def stage_schema(self, ledger: Ledger, record: Record, **named: Any) -> Record:
        return record

    def publish(self, ledger: Ledger, record: Record, included: Sequence[Record]) -> None:
        sources = included if record.kind == "replace" else [record]
        new = [
            row for source in sources for file in source.files for row in load(self.storage, file)
        ]
        stale = (
            {id for file in record.files for id, _ in load(self.storage, file)}
            if record.kind == "replace"
            else set()
        )
        transaction = f"{record.name} {record.files} {record.includes}"

        def effect() -> None:
            disk = self.storage.disk
            if transaction not in disk.transactions:
                disk.transactions.add(transaction)
                disk.rows = [*(row for row in disk.rows if row[0] not in stale), *new]

        self.storage.transact(effect)


class MemoryColumns(MemoryDelta):
    """One commit for all rows of a run."""

    kind = "columns of a delta"
    publishes_once = True


SINKS: dict[str, Any] = {"parquet": MemoryParquet, "delta": MemoryDelta, "columns": MemoryColumns}


def load(storage: MemoryStorage, name: str) -> list[tuple[int, str]]:
    data = storage.read(name)
    if data is None:
        raise TransientError(f"{name} is not there.")
    return [(id, text) for id, text in json.loads(data)]


def stage(
    storage: MemoryStorage, ledger: Ledger, name: str, rows: Sequence[tuple[int, str]]
) -> tuple[str, ...]:
    path = ledger.staging_path(name).removeprefix("memory/")
    # As Spark names them: by chance.
    unique = len(storage.disk.transactions) + storage.operations
    storage.put(f"{path}/part-{unique}.parquet", json.dumps(rows).encode())
    return ledger.staged_files(name)


def sync(storage: MemoryStorage, kind: str, source: Rows, *, id: str | None = "id") -> int:
    """Brings a table up to a source, in the steps of a job; returns how many rows it embedded.

    What follows a slash in a row's text is a column that passes through, which a table gains with
    its first slash: a change in it alone is refreshed and not embedded.
    """
    sink, session, schema = SINKS[kind](storage), Session(storage), StructType().add("id", "long")
    embedded = 0
    with acquire(storage) as lock:
        ledger = Ledger(storage, lock)
        commits = Commits(ledger, sink, schema=schema, id=id)
        commits.begin(replace(MANIFEST, id=id), {})
        recovered = commits.as_stored().recover(session)
        commits = evolved(commits, source)
        ledger = commits.ledger
        before = dict(sink.visible(storage.disk))
        if id is None and (recovered or ledger.has_finished):
            return 0
        changed = [row for row in source.items() if before.get(row[0]) != row[1]]
        refresh = [row for row in changed if content(before.get(row[0])) == content(row[1])]
        work = [row for row in changed if row not in refresh]
        if work and ledger.manifest.canaries is None:
            ledger.add_canaries(CANARIES)
        waits = sink.publishes_once or id is None
        deferred = [row for row in work if waits or row[0] in before]
        new = [row for row in work if row not in deferred]
        records = []
        if refresh:
            name = ledger.name(1)
            files = stage(storage, ledger, name, refresh)
            counts = {"refreshed": len(refresh)}
            record = Record(
                name=name, kind="deferred", files=files, rows=len(refresh), counts=counts
            )
            records.append(commits.commit(record))
        for rows, record_kind in ((deferred, "deferred"), (new, "append")):
            for start in range(0, len(rows), CHUNK):
                name, chunk = ledger.name(len(records) + 1), rows[start : start + CHUNK]
                storage.put(ledger.work_path("rows").removeprefix("memory/"), b"")
                files = stage(storage, ledger, name, chunk)
                embedded += len(chunk)
                record = Record(name=name, kind=record_kind, files=files, rows=len(chunk))
                records.append(commits.commit(record))
        includes = tuple(record.name for record in records if record.kind == "deferred")
        deleted = Frame(sorted(set(before) - set(source)))
        if includes or deleted:
            replacement = Record(
                name=ledger.name(len(records) + 1), kind="replace", includes=includes
            )
            commits.replace(session, replacement, deleted=deleted)
        ledger.sweep()
        if embedded:
            ledger.keep_figures({"vectors": embedded})
    return embedded


def evolved(commits: Commits, source: Rows) -> Commits:
    """Commits to the table with the columns of the rows."""
    schema = schema_of(source)
    return commits if commits.as_stored().schema == schema else commits.evolve(schema)


def schema_of(source: Rows) -> StructType:
    """The columns of a table of these rows."""
    schema = StructType().add("id", "long")
    return schema.add("title", "string") if any("/" in text for text in source.values()) else schema


def content(text: str | None) -> str | None:
    """The part of a row's text that is embedded."""
    return None if text is None else text.partition("/")[0]


def visible_rows(disk: Disk, kind: str) -> Counter[tuple[int, str]]:
    """How often a reader of the table sees each row."""
    return Counter(SINKS[kind].visible(disk))


def left_over(disk: Disk) -> list[str]:
    """Files of commits that are not finished."""
    folders = ("_e5spark/staging", "_e5spark/work", "_e5spark/commits")
    return [name for name in disk.files if name.startswith(folders)]


def forget_locks() -> None:
    """Every process that held a lock has ended."""
    own_tokens.clear()


@contextmanager
def simulated() -> Iterator[None]:
    """Locks send no heartbeat, files are moved one by one, and columns need no JVM."""

    class NoThread:
        def __init__(self, **named: Any) -> None:
            pass

        def start(self) -> None:
            pass

        def join(self) -> None:
            pass

    threads = SimpleNamespace(Thread=NoThread, Event=threading.Event)
    columns = SimpleNamespace(col=lambda name: name)
    with (
        patch.object(lock_module, "threading", threads),
        patch.object(commit_module, "F", columns),
        patch.object(parquet_module, "_REQUESTS", 1),
    ):
        yield
    forget_locks()
