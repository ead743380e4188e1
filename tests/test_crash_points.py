"""Runs that die, fail or pause at every single storage operation, in memory, without Spark.

The number of crash points is in the name of each test. Real processes are killed in test_ledger
and test_chaos.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace

import pytest

from e5spark.errors import ConflictError, E5SparkError, TransientError
from e5spark.tables.ledger.ledger import Ledger
from e5spark.tables.ledger.manifest import read_manifest
from tests import memory
from tests.memory import CHUNK, Died, Disk, MemoryStorage, Rows, sync

ROWS: Rows = {number: f"text {number}" for number in range(6)}
NEXT: Rows = {0: "text 0", 1: "changed", 2: "changed", 4: "text 4", 7: "new", 8: "new", 9: "new"}
# name: what the table has before, what it has in the end, and the column of ids
SCENARIOS: dict[str, tuple[Rows, Rows, str | None]] = {
    "first run": ({}, ROWS, "id"),
    "update": (ROWS, NEXT, "id"),
    "deletion": (ROWS, {3: "text 3"}, "id"),
    "refresh": (ROWS, {**ROWS, 0: "text 0/title", 1: "text 1/title", 7: "new/title"}, "id"),
    "without ids": ({}, ROWS, None),
}
EVENTS = ("dies", "fails", "loses the answer", "pauses")


def begun(kind: str, scenario: str) -> Disk:
    """The disk before the run."""
    disk, (rows, _, id) = Disk(), SCENARIOS[scenario]
    if rows:
        sync(MemoryStorage(disk), kind, rows, id=id)
    return disk


def operations(kind: str, scenario: str) -> int:
    """How many storage operations the run has, from the lock to its release."""
    with memory.simulated():
        storage = MemoryStorage(begun(kind, scenario))
        sync(storage, kind, SCENARIOS[scenario][1], id=SCENARIOS[scenario][2])
    return storage.operations


CASES = [
    pytest.param(kind, scenario, points, id=f"{kind}, {scenario}, {points} points")
    for kind in memory.SINKS
    for scenario in SCENARIOS
    for points in [operations(kind, scenario)]
]


@pytest.fixture(autouse=True)
def simulation() -> Iterator[None]:
    with memory.simulated():
        yield


def interrupted(
    disk: Disk, kind: str, scenario: str, at: int, event: str, pause: Callable[[], None] = Died
) -> MemoryStorage:
    """A run that meets an event at an operation; then its process is gone."""
    storage = MemoryStorage(disk, at=at, event=event, pause=pause)
    with suppress(Died, TransientError, ConflictError):
        sync(storage, kind, SCENARIOS[scenario][1], id=SCENARIOS[scenario][2])
    memory.forget_locks()
    return storage


def check_recovery(disk: Disk, kind: str, scenario: str) -> int:
    """A run to its end leaves each row once; another one has nothing to do."""
    _, wanted, id = SCENARIOS[scenario]
    embedded = sync(MemoryStorage(disk), kind, wanted, id=id)
    assert memory.visible_rows(disk, kind) == Counter(wanted.items())
    assert memory.left_over(disk) == []
    manifest = read_manifest(MemoryStorage(disk))
    schema = memory.schema_of(wanted).jsonValue()
    assert {**manifest.schema, "type": "struct"} == schema
    assert replace(manifest, canaries=None, schema={**memory.MANIFEST.schema}) == replace(
        memory.MANIFEST, id=id
    )
    # None where a run that stood still while it wrote the first manifest has overwritten its
    # successor's: the next run that embeds adds canaries again.
    assert manifest.canaries in (None, memory.CANARIES)
    assert sync(MemoryStorage(disk), kind, wanted, id=id) == 0
    assert memory.visible_rows(disk, kind) == Counter(wanted.items())
    return embedded


@pytest.mark.parametrize("event", ["dies", "fails", "loses the answer"])
@pytest.mark.parametrize(("kind", "scenario", "points"), CASES)
def test_a_run_that_ends_at_any_operation_is_finished_by_the_next(
    kind: str, scenario: str, points: int, event: str
) -> None:
    before, (_, wanted, id) = begun(kind, scenario), SCENARIOS[scenario]
    rows = SCENARIOS[scenario][0].items()
    contents = {(id, memory.content(text)) for id, text in rows}
    work = sum((id, memory.content(text)) not in contents for id, text in wanted.items())
    unchanged = set(wanted.items()) & set(rows)
    for at in range(1, points + 1):
        disk = deepcopy(before)
        storage = interrupted(disk, kind, scenario, at, event)
        assert storage.operations >= at
        assert memory.visible_rows(disk, kind).keys() >= unchanged, f"at operation {at}"
        recorded = sum(
            record.rows
            for record in Ledger(MemoryStorage(disk), None).pending("append", "deferred")
            if "refreshed" not in record.counts
        )
        embedded = check_recovery(disk, kind, scenario)
        assert read_manifest(MemoryStorage(disk)).canaries, f"at operation {at}"
        assert embedded <= work, f"at operation {at}"
        if id is not None:
            assert embedded <= work - recorded + CHUNK, f"at operation {at}"


@pytest.mark.parametrize(("kind", "scenario", "points"), CASES)
def test_a_run_that_pauses_at_any_operation_loses_and_doubles_nothing(
    kind: str, scenario: str, points: int
) -> None:
    """Another run takes the output over, ends, and then the first one goes on."""
    before, (_, wanted, id) = begun(kind, scenario), SCENARIOS[scenario]
    for at in range(1, points + 1):
        disk = deepcopy(before)

        def take_over(disk: Disk = disk) -> None:
            memory.forget_locks()
            sync(MemoryStorage(disk), kind, wanted, id=id)

        interrupted(disk, kind, scenario, at, "pauses", take_over)
        check_recovery(disk, kind, scenario)


@pytest.mark.parametrize(
    ("kind", "scenario", "points"), [case for case in CASES if case.values[1] == "update"]
)
def test_a_recovery_that_dies_at_any_operation_is_finished_too(
    kind: str, scenario: str, points: int
) -> None:
    before = begun(kind, scenario)
    for first in range(1, points + 1, 7):
        broken = deepcopy(before)
        interrupted(broken, kind, scenario, first, "dies")
        second, is_reached = 0, True
        while is_reached:
            second += 1
            disk = deepcopy(broken)
            storage = interrupted(disk, kind, scenario, second, "dies")
            is_reached = storage.operations >= second
            if is_reached:
                check_recovery(disk, kind, scenario)


def test_the_simulation_notices_a_ledger_that_forgets_its_records(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The tests above can fail."""
    monkeypatch.setattr(Ledger, "pending", lambda ledger, *kinds: [])
    _, _, points = next(case.values for case in CASES if case.values[:2] == ("parquet", "update"))
    with pytest.raises((AssertionError, E5SparkError)):
        test_a_run_that_ends_at_any_operation_is_finished_by_the_next(
            "parquet", "update", points, "dies"
        )
