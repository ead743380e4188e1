"""Damaged state files, and those of other releases: a conflict with a remedy, never a traceback."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from e5spark.errors import ConflictError
from e5spark.tables.ledger.documents import FORMAT, dumped
from e5spark.tables.ledger.ledger import Ledger
from e5spark.tables.ledger.lock import acquire
from e5spark.tables.ledger.manifest import read_manifest
from e5spark.tables.ledger.records import Record, RunFigures
from e5spark.tables.ledger.stream_checkpoint import claim
from e5spark.tables.storage.local import LocalStorage
from tests.test_commit import MANIFEST, FakeLock

RECORD = Record(name="00001-00001", kind="append", files=("a.parquet",), rows=5, counts={"ok": 5})
LOCK = {
    "format": FORMAT,
    "token": "t",
    "host": "elsewhere",
    "machine": "m",
    "pid": 1,
    "process_started": None,
    "started_at": "2026-01-01T00:00:00+00:00",
    "ttl": 0.01,
}

Read = Callable[[LocalStorage], object]


def read_lock(files: LocalStorage) -> object:
    lock = acquire(files)
    lock.release()
    return lock


def read_checkpoint(files: LocalStorage) -> object:
    output = LocalStorage("output", Path(files.root) / "output")
    output.put("_e5spark/streams/t.json", b"")
    claim(files, output)
    return "claimed"


# name: the file, a good document, what reads it, and a part of the remedy
KINDS: dict[str, tuple[str, dict[str, object], Read, str]] = {
    "manifest": (
        "_e5spark/manifest.json",
        asdict(MANIFEST),
        read_manifest,
        "Restore it from a backup, or give a new output.",
    ),
    "record": (
        "_e5spark/commits/00001-00001.json",
        asdict(RECORD),
        lambda files: Ledger(files, FakeLock(2)).pending("append"),
        "Restore it from a backup, or give a new output.",
    ),
    "figures": (
        "_e5spark/figures.json",
        asdict(RunFigures(epoch=1, figures={"vectors": 5})),
        lambda files: Ledger(files, FakeLock(2)).last_figures(),
        "Remove the file: the next run writes a new one",
    ),
    "lock": (
        "_e5spark/lock/0000001.json",
        LOCK,
        read_lock,
        "Make sure that no run writes to this output, run e5spark unlock",
    ),
    "stream checkpoint": (
        "e5spark.json",
        {"format": FORMAT, "token": "t"},
        read_checkpoint,
        "give a new input.checkpoint_location",
    ),
}
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[: len(data) // 2],
    "not JSON": lambda data: b"<html>",
    "not UTF-8": lambda data: b"\xff\xfe" + data,
    "another type": lambda data: b"[1]",
    "null": lambda data: b"null",
    "no fields": lambda data: b"{}",
    "a text as its format": lambda data: dumped({**json.loads(data), "format": "1"}),
    "zeros": lambda data: bytes(len(data)),
    "nested": lambda data: b"[" * 100_000,
}


@pytest.fixture
def files(tmp_path: Path) -> LocalStorage:
    return LocalStorage(str(tmp_path), tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_state_file_is_read(files: LocalStorage, kind: str) -> None:
    name, document, read, _ = KINDS[kind]
    files.put(name, dumped(document))
    assert read(files)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_state_file_is_a_conflict_with_a_remedy(
    files: LocalStorage, kind: str, damage: str
) -> None:
    name, document, read, remedy = KINDS[kind]
    files.put(name, DAMAGE[damage](dumped(document)))
    with pytest.raises(ConflictError) as caught:
        read(files)
    message = str(caught.value)
    assert f"{name} is damaged: " in message
    assert remedy in message
    assert len(message) < 400


@pytest.mark.parametrize(
    ("kind", "field"),
    [(kind, field) for kind, (_, document, *_) in KINDS.items() for field in document],
)
def test_a_value_of_the_wrong_type_is_a_conflict(
    files: LocalStorage, kind: str, field: str
) -> None:
    name, document, read, _ = KINDS[kind]
    files.put(name, dumped({**document, field: [{"SECRET": 1}]}))
    with pytest.raises(ConflictError, match="is damaged: ") as caught:
        read(files)
    assert field in str(caught.value)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("change", [{"schema": {}}, {"schema": {"fields": [1]}}, {"parts": {}}])
def test_an_inner_value_that_a_manifest_needs_is_checked(
    files: LocalStorage, change: dict[str, object]
) -> None:
    files.put("_e5spark/manifest.json", dumped({**asdict(MANIFEST), **change}))
    with pytest.raises(ConflictError, match="is damaged: "):
        read_manifest(files)


@pytest.mark.parametrize("kind", KINDS)
def test_a_newer_format_is_refused_and_an_older_one_is_read(files: LocalStorage, kind: str) -> None:
    name, document, read, _ = KINDS[kind]
    files.put(name, dumped({"format": FORMAT + 1}))
    with pytest.raises(
        ConflictError, match=f"has format {FORMAT + 1}; this e5spark reads formats up to"
    ):
        read(files)
    # Fields that only the file has are of no harm.
    files.put(name, dumped({**document, "format": FORMAT - 1, "of another release": 1}))
    assert read(files)


def test_a_damaged_heartbeat_is_of_no_harm(files: LocalStorage) -> None:
    files.put("_e5spark/lock/0000001.json", dumped(LOCK))
    files.put("_e5spark/lock/0000001.heartbeat", b"\xff")
    files.put("_e5spark/lock/notes.txt", b"")
    with acquire(files) as lock:
        assert lock.epoch == 2


def test_a_state_file_s_message_shows_no_credential(tmp_path: Path) -> None:
    files = LocalStorage("s3a://KEY:SECRET@bucket/out", tmp_path)
    files.put("_e5spark/manifest.json", b"")
    with pytest.raises(ConflictError) as caught:
        read_manifest(files)
    assert str(caught.value).startswith("s3a://bucket/out/_e5spark/manifest.json is damaged")
