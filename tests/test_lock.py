"""The lock on an output: of real processes that race, die, pause and come back."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY

import pytest

from e5spark.errors import ConflictError, E5SparkError, TransientError
from e5spark.tables.ledger import lock
from e5spark.tables.ledger.holder import claim_path, last_holder
from e5spark.tables.ledger.layout import LOCK
from e5spark.tables.ledger.lock import Lock, acquire, unlock
from e5spark.tables.storage.local import LocalStorage

RACERS = 4
SHORT = 0.4
SPAWN = multiprocessing.get_context("spawn")

Start = Callable[..., BaseProcess]


@pytest.fixture
def output(tmp_path: Path) -> LocalStorage:
    return LocalStorage(str(tmp_path), tmp_path)


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process that takes the lock; gives it once it has written `ready`."""
    started: list[BaseProcess] = []

    def begin(output: LocalStorage, *arguments: Any) -> BaseProcess:
        process = SPAWN.Process(target=holder, args=(Path(output.root), *arguments))
        process.start()
        started.append(process)
        while output.read("ready") is None:
            assert process.is_alive()
            time.sleep(0.01)
        return process

    yield begin
    for process in started:
        process.kill()
        process.join()


def test_the_first_run_gets_the_first_epoch_and_the_next_the_second(output: LocalStorage) -> None:
    with acquire(output) as first:
        assert first.epoch == 1
        first.check()
    with acquire(output) as second:
        assert second.epoch == 2
        second.check()


def test_a_run_that_fails_releases(output: LocalStorage) -> None:
    with pytest.raises(ZeroDivisionError), acquire(output):
        _ = 1 / 0
    acquire(output).release()


def test_the_holder_keeps_the_files_of_its_epoch_alone(output: LocalStorage) -> None:
    for _ in range(3):
        acquire(output).release()
    with acquire(output):
        names = output.list(LOCK)
    assert set(names) <= {"0000004.json", "0000004.heartbeat"}
    assert output.list(LOCK)[-1] == "0000004.released"


@pytest.mark.parametrize(
    "name",
    ["done/00007-00001.json", "commits/00007-00002.json", "staging/00007-00001/a", "work/00007/a"],
)
def test_an_epoch_in_any_file_name_is_never_used_again(output: LocalStorage, name: str) -> None:
    output.put(f"_e5spark/{name}", b"")
    output.put("_e5spark/done/00002-00009.json", b"")
    with acquire(output) as held:
        assert held.epoch == 8
        held.check()
    assert acquire(output).epoch == 9


def test_a_second_run_names_the_first(output: LocalStorage, start: Start) -> None:
    process = start(output)
    with pytest.raises(ConflictError) as caught:
        acquire(output)
    message = str(caught.value)
    assert f"process {process.pid} on {socket.gethostname()}, since 20" in message
    assert caught.value.exit_code == 5


def test_a_second_run_in_the_same_process_is_refused(output: LocalStorage) -> None:
    with acquire(output) as first:
        with pytest.raises(ConflictError):
            acquire(output)
        first.check()


def test_exactly_one_of_several_processes_gets_the_lock(output: LocalStorage) -> None:
    assert race(output) == [0, 5, 5, 5]


def test_exactly_one_of_several_processes_takes_over(output: LocalStorage, start: Start) -> None:
    kill(start(output))
    assert race(output) == [0, 5, 5, 5]
    assert "0000002.json" in output.list(LOCK)


def test_a_killed_run_is_taken_over_without_a_wait(
    output: LocalStorage, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill(start(output))
    monkeypatch.setattr(lock, "time", clock(forbidden))
    with acquire(output) as taken:
        assert taken.epoch == 2


def test_a_killed_run_that_nobody_has_waited_for_is_dead(
    output: LocalStorage, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start(output)
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie from here on
    monkeypatch.setattr(lock, "time", clock(forbidden))
    acquire(output).release()


def test_a_pid_that_another_process_has_now_is_no_live_run(
    output: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire(output)._stop.set()
    with subprocess.Popen(["sleep", "60"]) as other:
        rewrite(output, 1, pid=other.pid, process_started=1)
        monkeypatch.setattr(lock, "time", clock(forbidden))
        acquire(output).release()
        other.kill()


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"machine": "another boot"}])
def test_a_run_on_another_machine_is_taken_over_once_its_heartbeat_stops(
    output: LocalStorage, change: dict[str, str]
) -> None:
    first = acquire(output, ttl=SHORT)
    first._stop.set()
    first._thread.join()
    rewrite(output, 1, **change, pid=1)
    with acquire(output) as second:
        assert second.epoch == 2
        with pytest.raises((ConflictError, TransientError)):
            first.check()


def test_a_run_on_another_machine_with_a_live_heartbeat_is_never_taken_over(
    output: LocalStorage,
) -> None:
    with acquire(output, ttl=SHORT) as first:
        rewrite(output, 1, host="elsewhere")
        with pytest.raises(ConflictError, match="on elsewhere"):
            acquire(output, ttl=0.001)
        first.check()


def test_a_run_on_another_machine_that_ends_while_it_is_watched_leaves_the_lock(
    output: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = acquire(output, ttl=3600)
    rewrite(output, 1, host="elsewhere")
    monkeypatch.setattr(lock, "time", clock(lambda _: first.release()))
    assert acquire(output).epoch == 2


def test_a_run_that_paused_cannot_commit(output: LocalStorage, start: Start) -> None:
    process = start(output, SHORT, "commit")
    assert process.pid
    os.kill(process.pid, signal.SIGSTOP)
    rewrite(output, 1, host="elsewhere")
    with acquire(output, ttl=SHORT) as second:
        os.kill(process.pid, signal.SIGCONT)
        output.put("go", b"")
        process.join()
        assert process.exitcode in (ConflictError.exit_code, TransientError.exit_code)
        assert output.read("committed") is None
        second.check()


def test_a_run_that_lost_its_epoch_learns_whose_it_is(output: LocalStorage) -> None:
    with acquire(output) as first:
        claim = output.read("_e5spark/lock/0000001.json")
        assert claim
        output.create("_e5spark/lock/0000002.json", claim)
        with pytest.raises(ConflictError, match=f"process {os.getpid()} on "):
            first.check()


def test_a_slow_claim_of_an_epoch_that_is_over_is_refused(output: LocalStorage) -> None:
    """Epoch 2 came, went and was cleaned up between a look at epoch 1 and the claim of 2."""

    class Late(LocalStorage):
        def list(self, directory: str) -> list[str]:
            names = super().list(directory)
            if "0000001.released" in names:
                for _ in range(2):
                    acquire(output).release()
            return names

    acquire(output).release()
    late = Late(output.root, Path(output.root))
    with pytest.raises(ConflictError):
        acquire(late)
    assert acquire(output).epoch == 4


def test_a_run_whose_heartbeat_cannot_be_written_notices(output: LocalStorage) -> None:
    class Broken(LocalStorage):
        def put(self, name: str, data: bytes) -> None:
            raise TransientError("The disk is full.")

    broken = Broken(output.root, Path(output.root))
    held = acquire(broken, ttl=SHORT)
    with pytest.raises(TransientError, match=r"no longer commits to .*: The disk is full\."):
        until_refused(held)
    with pytest.raises(TransientError):
        held.release()
    # It could not say so, but this process knows that it no longer holds the lock.
    assert acquire(output).epoch == 2


def test_a_lock_of_a_newer_format_is_left_alone(output: LocalStorage) -> None:
    output.create("_e5spark/lock/0000001.json", b'{"format": 2}')
    with pytest.raises(
        ConflictError, match=r"0000001\.json has format 2; this e5spark reads formats up to"
    ):
        acquire(output)


def test_a_lock_that_nobody_has_claimed_needs_no_unlock(output: LocalStorage) -> None:
    assert unlock(output) is None
    assert output.list("") == []
    acquire(output).release()
    before = output.list(LOCK)
    found = unlock(output)
    assert found
    assert found.is_released
    assert "The lock is free" in found.sentence
    assert output.list(LOCK) == before


def test_the_lock_of_a_live_run_is_unlocked_only_by_force(
    output: LocalStorage, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start(output)
    monkeypatch.setattr(lock, "time", clock(forbidden))
    before = output.list(LOCK)
    with pytest.raises(ConflictError) as caught:
        unlock(output)
    message = str(caught.value)
    assert f"Run 1 holds the lock: process {process.pid} on {socket.gethostname()}" in message
    assert "its last heartbeat was 0 s ago; the process is alive" in message
    assert "add --force" in message
    assert output.list(LOCK) == before
    taken = unlock(output, force=True)
    assert taken
    assert taken.owner
    assert (taken.epoch, taken.owner.pid, taken.is_alive) == (1, process.pid, True)
    with acquire(output) as third:
        assert third.epoch == 3


def test_a_live_run_that_was_unlocked_cannot_commit(output: LocalStorage) -> None:
    with acquire(output) as first:
        unlock(output, force=True)
        with pytest.raises(ConflictError, match="Another run writes to"):
            first.check()


def test_the_lock_of_a_run_that_died_here_is_unlocked_without_a_wait(
    output: LocalStorage, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill(start(output))
    monkeypatch.setattr(lock, "time", clock(forbidden))
    holder = last_holder(output)
    assert holder
    assert holder.sentence.endswith("the process is dead, so the next run takes over at once.")
    assert unlock(output) == replace(holder, heartbeat_age=ANY)
    found = last_holder(output)
    assert found
    assert (found.epoch, found.is_released) == (2, True)


def test_the_lock_of_a_run_on_another_machine_is_unlocked_once_it_is_silent(
    output: LocalStorage,
) -> None:
    first = acquire(output, ttl=SHORT)
    rewrite(output, 1, host="elsewhere")
    with pytest.raises(ConflictError, match=r"process .* on elsewhere.* this machine cannot see"):
        unlock(output)
    first.check()
    first._stop.set()
    first._thread.join()
    assert unlock(output)
    acquire(output).release()


@pytest.mark.parametrize("claim", [b"", b"{}", b'{"format": 1'])
def test_a_damaged_claim_is_unlocked_once_it_is_silent_and_then_runs_begin_again(
    output: LocalStorage, claim: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    output.put(f"{LOCK}/0000004.json", claim)
    with pytest.raises(ConflictError, match="run e5spark unlock with the job file"):
        acquire(output)
    monkeypatch.setattr(lock, "_TTL", SHORT)
    found = unlock(output)
    assert found
    assert (found.epoch, found.owner, found.is_alive) == (4, None, None)
    assert "0000004.json is damaged" in found.problem
    assert "an unknown process, because the claim is damaged" in found.sentence
    with acquire(output) as held:
        assert held.epoch == 6


def test_a_damaged_claim_with_a_live_heartbeat_stays(
    output: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_TTL", SHORT)
    with acquire(output, ttl=SHORT):
        output.put(f"{LOCK}/0000001.json", b"")
        with pytest.raises(ConflictError, match="Its lock stays"):
            unlock(output)
    assert output.list(LOCK) == ["0000001.heartbeat", "0000001.json", "0000001.released"]


def test_a_lock_of_a_newer_format_is_not_unlocked(output: LocalStorage) -> None:
    output.create(f"{LOCK}/0000001.json", b'{"format": 2}')
    with pytest.raises(ConflictError, match="has format 2"):
        unlock(output, force=True)


def test_unlock_changes_nothing_but_the_lock(output: LocalStorage, start: Start) -> None:
    kill(start(output))
    kept = ["manifest.json", "commits/00001-00001.json", "staging/00001-00001/_recorded"]
    for name in [*kept, "work/00001/changes/a", "done/00001-00000.json", "runs/00001.json"]:
        output.put(f"_e5spark/{name}", name.encode())
    before = contents(output)
    assert unlock(output)
    assert contents(output) == before


def contents(output: LocalStorage) -> dict[str, bytes]:
    """Every file of the output outside the lock."""
    root = Path(output.root)
    paths = [path for path in root.rglob("*") if path.is_file() and path.parent != root / LOCK]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def holder(directory: Path, ttl: float = 60.0, then: str = "deferred") -> None:
    output = LocalStorage(str(directory), directory)
    try:
        with acquire(output, ttl=ttl) as held:
            while output.read(claim_path(held.epoch, "heartbeat")) is None:  # a thread writes it
                time.sleep(0.01)
            output.put("ready", b"")
            while then == "deferred" or output.read("go") is None:
                time.sleep(0.01)
            held.check()
            output.put("committed", b"")
    except E5SparkError as error:
        raise SystemExit(error.exit_code) from None


def race(output: LocalStorage) -> list[int | None]:
    """Exit codes of processes that want the lock at one moment and keep it until all have tried."""
    processes = [SPAWN.Process(target=racer, args=(Path(output.root),)) for _ in range(RACERS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return sorted(process.exitcode for process in processes)


def racer(directory: Path) -> None:
    output = LocalStorage(str(directory), directory)
    meet(output, "racers")
    try:
        with acquire(output):
            meet(output, "tried")
    except ConflictError as error:
        meet(output, "tried")
        raise SystemExit(error.exit_code) from None


def meet(output: LocalStorage, name: str) -> None:
    output.put(f"{name}/{os.getpid()}", b"")
    while len(output.list(name)) < RACERS:
        time.sleep(0.001)


def kill(process: BaseProcess) -> None:
    process.kill()
    process.join()


def rewrite(output: LocalStorage, epoch: int, **changes: object) -> None:
    """Changes what a claim says of its owner."""
    name = f"{LOCK}/{epoch:07d}.json"
    output.put(name, json.dumps(json.loads(output.read(name) or b"") | changes).encode())


def until_refused(held: Lock) -> None:
    while True:
        held.check()
        time.sleep(SHORT / 10)


def clock(sleep: Callable[[float], None]) -> SimpleNamespace:
    """The lock's clock alone: other threads of this process sleep as well."""
    return SimpleNamespace(monotonic=time.monotonic, sleep=sleep)


def forbidden(seconds: float) -> None:
    raise AssertionError("it waits")
