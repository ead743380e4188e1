"""A commit by a run that has been overtaken, and what a manifest protects: no Spark is needed."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql.types import StructType

from e5spark.errors import ConflictError
from e5spark.tables.ledger import layout
from e5spark.tables.ledger import ledger as records
from e5spark.tables.ledger.documents import dumped
from e5spark.tables.ledger.ledger import Ledger
from e5spark.tables.ledger.manifest import Manifest, read_manifest
from e5spark.tables.ledger.records import Record
from e5spark.tables.sinks.commit import Commits
from e5spark.tables.storage.local import LocalStorage

PARTS = {"weights": "a" * 64, "recipe": {"dim": 32, "max_tokens": 512}, "precision": "fp32"}
MANIFEST = Manifest(
    fingerprint="one",
    parts=PARTS,
    schema={"fields": [{"name": "id", "type": "long", "nullable": True, "metadata": {}}]},
    dim=32,
    id="id",
    table="parquet",
    versions={},
)


class FakeLock:
    """A lock that is lost at a given check."""

    def __init__(self, epoch: int, before: Callable[[int], None] = lambda number: None) -> None:
        self.epoch = epoch
        self._before = before
        self._checks = 0

    def check(self) -> None:
        self._checks += 1
        self._before(self._checks)


class FakeTarget:
    """A table whose published records are in a list."""

    def __init__(self) -> None:
        self.published: list[str] = []

    def publish(self, ledger: Ledger, record: Record, included: Any) -> None:
        self.published.append(record.name)


@pytest.fixture
def files(tmp_path: Path) -> LocalStorage:
    return LocalStorage(str(tmp_path), tmp_path)


def commits(ledger: Ledger, target: FakeTarget) -> Commits:
    return Commits(ledger, target, schema=StructType([]), id="id")


@pytest.mark.parametrize("at", [1, 2])
def test_a_run_that_was_overtaken_commits_nothing(files: LocalStorage, at: int) -> None:
    target = FakeTarget()

    def overtake(number: int) -> None:
        # The next run recovers, which sweeps, while this one is paused before its check.
        if number == at:
            commits(Ledger(files, FakeLock(2)), target).recover(None)
            raise ConflictError("Another run has taken over.")

    record = Record(name="00001-00001", kind="append", files=("a.parquet",), rows=5)
    files.put(f"_e5spark/staging/{record.name}/part-0.parquet", b"rows")
    with pytest.raises(ConflictError):
        commits(Ledger(files, FakeLock(1, overtake)), target).commit(record)
    # Put before the other run looked, the record is finished by it; put later, it is lost.
    assert target.published == ([] if at == 1 else [record.name])
    assert commits(Ledger(files, FakeLock(3)), target).recover(None) == 0
    assert target.published == ([] if at == 1 else [record.name])


def test_a_record_that_is_put_after_the_sweep_is_dropped(files: LocalStorage) -> None:
    class Late(LocalStorage):
        """The other run takes over between this one's check and its put."""

        def put(self, name: str, data: bytes) -> None:
            if name.startswith("_e5spark/commits/"):
                commits(Ledger(files, FakeLock(2)), FakeTarget()).recover(None)
            super().put(name, data)

    def lost(number: int) -> None:
        if number == 2:
            raise ConflictError("Another run has taken over.")

    record = Record(name="00001-00001", kind="append", rows=5)
    files.put(f"_e5spark/staging/{record.name}/part-0.parquet", b"rows")
    late = Late(files.root, Path(files.root))
    with pytest.raises(ConflictError):
        Ledger(late, FakeLock(1, lost)).record(record)
    target = FakeTarget()
    assert commits(Ledger(files, FakeLock(3)), target).recover(None) == 0
    assert target.published == []
    assert files.list("_e5spark/commits") == []


def test_a_sweep_that_paused_leaves_what_the_next_run_has_staged(files: LocalStorage) -> None:
    def stage(epoch: int) -> list[str]:
        run = Ledger(files, FakeLock(epoch))
        paths = (run.staging_path(run.name(1)), run.work_path("rows"))
        names = [f"{path.removeprefix(f'{files.root}/')}/part-0.parquet" for path in paths]
        for name in names:
            files.put(name, b"rows")
        return names

    before, own = stage(99_998), stage(99_999)
    later: list[str] = []
    Ledger(files, FakeLock(99_999, lambda _: later.extend(stage(100_000)))).sweep()
    assert [files.read(name) for name in (*before, *own)] == [None] * 4
    assert [files.read(name) for name in later] == [b"rows"] * 2


def test_the_last_of_many_records_stay_and_the_table_counts_as_begun(
    files: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_DONE_RECORDS", 4)
    target = FakeTarget()
    Ledger(files, FakeLock(99_989)).begin(MANIFEST)
    for epoch in range(99_990, 100_010):
        run = commits(Ledger(files, FakeLock(epoch)), target)
        assert run.recover(None) == 0
        run.commit(Record(name=run.ledger.name(1), kind="append", files=("a.parquet",), rows=5))
        run.ledger.sweep()
        assert run.ledger.has_finished
    assert len(target.published) == 20
    last = [f"{epoch}-00001.json" for epoch in range(100_006, 100_010)]
    assert files.list("_e5spark/done") == last
    # What is not visible yet is not old.
    pending = Ledger(files, FakeLock(100_010))
    for number in range(1, 11):
        pending.record(
            Record(name=pending.name(number), kind="append", files=("a.parquet",), rows=1)
        )
    assert commits(Ledger(files, FakeLock(100_011)), target).recover(None) == 10
    assert target.published[20:] == [f"100010-{number:05d}" for number in range(1, 11)]
    with pytest.raises(ConflictError):
        pending.begin(replace(MANIFEST, fingerprint="two"))


def test_only_records_older_than_the_kept_ones_are_uncertain(
    files: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_DONE_RECORDS", 2)
    ledger = Ledger(files, FakeLock(9))
    ledger.storage.put("_e5spark/done/00003-00001.json", b"")
    names = [f"{epoch:05d}-00001" for epoch in range(2, 8)]
    assert ledger.unrecorded(names) == set(names) - {"00003-00001"}
    ledger.storage.put("_e5spark/done/00005-00001.json", b"")
    ledger.storage.put("_e5spark/commits/00006-00001.json", b"")
    assert ledger.unrecorded(names) == {"00004-00001", "00007-00001"}


def test_a_manifest_stays_as_soon_as_anything_is_committed(files: LocalStorage) -> None:
    ledger = Ledger(files, FakeLock(1))
    ledger.begin(MANIFEST)
    other = replace(MANIFEST, fingerprint="two", parts={**PARTS, "weights": "b" * 64})
    ledger.begin(other)
    assert read_manifest(files) == other
    ledger.record(Record(name="00001-00001", kind="append"))
    ledger.begin(other)
    with pytest.raises(ConflictError, match=r"model weights is bbbbbbbbbbbb\.\.\., this run's is"):
        ledger.begin(MANIFEST)
    assert read_manifest(files) == other


def test_a_manifest_that_was_lost_is_not_made_up(files: LocalStorage) -> None:
    ledger = Ledger(files, FakeLock(1))
    ledger.begin(MANIFEST)
    ledger.record(Record(name="00001-00001", kind="append"))
    files.delete("_e5spark/manifest.json")
    with pytest.raises(ConflictError, match=r"has lost _e5spark/manifest\.json"):
        ledger.begin(MANIFEST)
    assert read_manifest(files) is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"id": "key"}, "input.id = 'id', this run has 'key'"),
        ({"table": "delta"}, "is a parquet table and not delta"),
        ({"format": 2}, "manifest.json has format 2; this e5spark reads formats up to 1"),
    ],
)
def test_a_table_of_another_shape_is_refused(
    files: LocalStorage, change: dict[str, Any], sentence: str
) -> None:
    stored = {"format": 2} if "format" in change else {}
    Ledger(files, FakeLock(1)).begin(replace(MANIFEST, **stored))
    Ledger(files, FakeLock(1)).record(Record(name="00001-00001", kind="append"))
    with pytest.raises(ConflictError, match=sentence):
        Ledger(files, FakeLock(2)).begin(replace(MANIFEST, **change))


def test_canaries_are_added_to_a_manifest_of_any_release_and_change_nothing_else(
    files: LocalStorage,
) -> None:
    ledger = Ledger(files, FakeLock(1))
    ledger.begin(MANIFEST)
    older = json.loads(files.read(layout.MANIFEST))
    del older["canaries"]
    older["of another release"] = 1
    files.put(layout.MANIFEST, dumped(older))
    ledger.add_canaries({"texts": ["a"]})
    assert json.loads(files.read(layout.MANIFEST)) == {**older, "canaries": {"texts": ["a"]}}
    assert ledger.manifest == replace(MANIFEST, canaries={"texts": ["a"]})
    # They are no part of what a table's vectors are.
    ledger.check(MANIFEST)
    record = Record(name="00001-00001", kind="append")
    ledger.record(record)
    ledger.begin(MANIFEST)
    assert ledger.manifest.canaries == {"texts": ["a"]}


@pytest.mark.parametrize("write", [Ledger.add_canaries, Ledger.keep_figures])
def test_a_run_that_was_overtaken_writes_neither_canaries_nor_figures(
    files: LocalStorage, write: Callable[..., None]
) -> None:
    Ledger(files, FakeLock(1)).begin(MANIFEST)
    before = files.read(layout.MANIFEST)

    def overtaken(number: int) -> None:
        raise ConflictError("Another run has taken over.")

    with pytest.raises(ConflictError):
        write(Ledger(files, FakeLock(1, overtaken)), {"vectors": 1})
    assert files.read(layout.MANIFEST) == before
    assert Ledger(files, FakeLock(2)).last_figures() is None


def test_figures_of_the_last_run_replace_those_before_it(files: LocalStorage) -> None:
    for epoch in (1, 2):
        Ledger(files, FakeLock(epoch)).keep_figures({"vectors": epoch, "pair_cosine": None})
    assert Ledger(files, FakeLock(3)).last_figures() == {"vectors": 2, "pair_cosine": None}
