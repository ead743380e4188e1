"""State directories: after a mutation a run ends in an error, or leaves each row once and right.

The tables are those of ``tests.memory``: the real ledger, lock and sinks over files in memory. A
run may be killed at any of its operations before the mutation. An error must leave the rows that
readers see: none twice, none that no source has had, and none lost that every source has.
"""

import json
import shutil
from collections import Counter
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from e5spark.errors import E5SparkError, OptionError, TransientError
from e5spark.job import canaries
from e5spark.model.output_type import Calibration, load_calibration
from e5spark.tables.ledger import lock as lock_module
from e5spark.tables.ledger.documents import dumped
from e5spark.tables.ledger.holder import last_holder
from e5spark.tables.ledger.ledger import Ledger
from e5spark.tables.ledger.lock import acquire
from e5spark.tables.ledger.manifest import check_same, read_manifest
from e5spark.tables.ledger.records import RunRecord, read_figures
from e5spark.tables.ledger.state import read_state
from e5spark.tables.ledger.stream_checkpoint import claim
from e5spark.tables.storage.local import LocalStorage
from tests import memory
from tests.fuzz.mutate import mutate_bytes, mutate_directory, mutate_json
from tests.memory import Died, Disk, MemoryStorage

ROWS = {number: f"text {number}" for number in range(5)}
SCENARIOS: tuple[tuple[dict[int, str], dict[int, str], str | None], ...] = (
    ({}, ROWS, "id"),
    (ROWS, {**ROWS, 0: "new 0", 7: "new 7"}, "id"),
    (ROWS, {3: "text 3"}, "id"),
    (ROWS, {**ROWS, 1: "text 1/title", 8: "new"}, "id"),
    ({}, ROWS, None),
)
LONGEST_WAIT = 700.0  # seconds, by the clock of the simulation
RUN = RunRecord(
    epoch=1, command="embed", started_at="2026-01-01T00:00:00+00:00",
    ended_at="2026-01-01T00:00:01+00:00", outcome="done", counts={"ok": 5},
)  # fmt: skip
RANGES = Calibration(lowest=(-1.0, 0.0), highest=(1.0, 0.5), rows=3, fingerprint="f" * 64)


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0, f"sleeps for {seconds}"
        self.now += seconds
        assert self.now < LONGEST_WAIT, f"waits for {self.now} s"


def corpus(directory: Path) -> None:
    """Nothing: every case begins with its own table."""


def case(corpus: None, directory: Path, rng: Random, notes: list[str]) -> str:
    """Mutates the state of a table, and runs on it."""
    clock = Clock()
    fake = SimpleNamespace(monotonic=clock.monotonic, sleep=clock.sleep)
    with memory.simulated(), patch.object(lock_module, "time", fake):
        kind = rng.choice(list(memory.SINKS))
        before, wanted, id = rng.choice(SCENARIOS)
        notes.append(f"{kind}, {id}, {wanted}")
        disk = _killed(kind, before, wanted, id, rng)
        if rng.random() < 0.25:
            return _read_files(disk, directory, rng, notes)
        for _ in range(rng.choice((1, 1, 2))):
            notes.append(_mutate(disk, rng, has_ids=id is not None))
        allowed = {*before.items(), *wanted.items()}
        kept = set(before.items()) & set(wanted.items())
        seen = memory.visible_rows(deepcopy(disk), kind)
        read_state(MemoryStorage(deepcopy(disk)))
        try:
            for _ in range(2):
                _run(disk, kind, wanted, id)
                assert memory.visible_rows(disk, kind) == Counter(wanted.items()), "other rows"
        except E5SparkError:
            rows = memory.visible_rows(disk, kind)
            assert set(rows) <= allowed, f"wrong rows: {rows}"
            # A reader may see rows twice while a run that was killed had begun to replace them.
            assert all(rows[row] <= max(seen[row], 1) for row in rows), f"rows twice: {rows}"
            assert kept & set(seen) <= set(rows), f"rows lost: {rows} of {seen}"
            raise
        return "right rows"


def cleanup(directory: Path) -> None:
    shutil.rmtree(directory)


def _killed(kind: str, before: Any, wanted: Any, id: str | None, rng: Random) -> Disk:
    """A disk on which a run may have died."""
    disk = Disk()
    if before:
        _run(disk, kind, before, id)
    if rng.random() < 0.75 or not before:
        storage = MemoryStorage(disk, at=rng.randrange(1, 90), event=rng.choice(("dies", "fails")))
        with suppress(Died, TransientError):
            memory.sync(storage, kind, wanted, id=id)
        memory.forget_locks()
    if rng.random() < 0.3:
        disk.files["_e5spark/runs/00001.json"] = dumped(vars(RUN))
    return disk


def _run(disk: Disk, kind: str, rows: Any, id: str | None) -> None:
    try:
        memory.sync(MemoryStorage(disk), kind, rows, id=id)
    finally:
        memory.forget_locks()


def _mutate(disk: Disk, rng: Random, *, has_ids: bool) -> str:
    """Changes a file of the state directory; not the rows in staged files.

    A record that somebody moves to ``done`` says that its rows are visible. With ids the next run
    sees that they are not; without ids nothing can.
    """
    names = sorted(name for name in disk.files if name.startswith("_e5spark/"))
    if not names:
        return "nothing"
    documents = [name for name in names if name.endswith(".json")]
    name = rng.choice(documents if documents and rng.random() < 0.85 else names)
    action = rng.randrange(12)
    if action == 0:
        del disk.files[name]
        return f"removed {name}"
    if action == 1:
        folder, _, file = name.rpartition("/")
        number = rng.choice(("00000-00001", "00001-00001", "00009-00001", "99999-1", "x", "9" * 50))
        target = f"{folder}/{rng.choice((number + '.json', 'x' + file, file + '.bak'))}"
        disk.files[target] = disk.files[name] if rng.random() < 0.5 else disk.files.pop(name)
        return f"{name} to {target}"
    if action == 2 and len(documents) > 1:
        other = rng.choice(documents)
        disk.files[name], disk.files[other] = disk.files[other], disk.files[name]
        return f"swapped {name} and {other}"
    if action == 3 and has_ids:
        disk.files[name.replace("/commits/", "/done/")] = disk.files.pop(name)
        return f"{name} is done"
    if not name.endswith(".json"):
        if "/staging/" not in name:
            disk.files[name] = mutate_bytes(disk.files[name], rng)
        return f"mutated {name}"
    mutate = mutate_json if rng.random() < 0.7 else mutate_bytes
    disk.files[name] = mutate(disk.files[name], rng)
    return f"mutated {name}: {disk.files[name][:700]!r}"


def _read_files(disk: Disk, directory: Path, rng: Random, notes: list[str]) -> str:
    """Reads mutated files from a real directory, with links and directories in their place."""
    disk.files["_e5spark/streams/t.json"] = b"{}"
    for name, content in disk.files.items():
        path = directory / "table" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    checkpoint = directory / "table" / "_e5spark" / "checkpoint"
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / "e5spark.json").write_bytes(dumped({"format": 1, "token": "t"}))
    RANGES.save(checkpoint / "ranges.json")
    (checkpoint / "canaries.json").write_text(json.dumps(memory.CANARIES))
    for _ in range(rng.choice((1, 2))):
        change = lambda name, data, rng: mutate_json(data, rng)  # noqa: E731
        notes.append(mutate_directory(directory / "table" / "_e5spark", rng, change))
    storage = LocalStorage("table", directory / "table")
    refused = 0
    for read in (
        lambda: read_state(storage),
        lambda: last_holder(storage),
        lambda: read_figures(storage),
        lambda: check_same(read_manifest(storage) or memory.MANIFEST, memory.MANIFEST),
        lambda: [
            canaries.read(made)
            for made in [getattr(read_manifest(storage), "canaries", None)]
            if made
        ],
        lambda: Ledger(storage, SimpleNamespace(epoch=1, check=lambda: None)).pending(
            "append", "deferred", "replace"
        ),  # type: ignore[arg-type]
        lambda: claim(LocalStorage("checkpoint", checkpoint), storage),
        lambda: _calibration(checkpoint / "ranges.json"),
        lambda: canaries.read(_json(checkpoint / "canaries.json")),
        lambda: acquire(storage).release(),
    ):
        try:
            read()
        except E5SparkError:
            refused += 1
    return f"read, {min(refused, 1)} refused"


def _calibration(path: Path) -> None:
    ranges = load_calibration(str(path)).ranges
    assert ranges.shape[0] == 2
    assert (ranges[0] <= ranges[1]).all()


def _json(path: Path) -> Any:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise OptionError("It is not JSON.") from error
    return value if isinstance(value, dict) else {}
