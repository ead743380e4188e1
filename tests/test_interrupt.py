"""Ctrl-C and SIGTERM end a command in order, and the same command continues from there."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from e5spark import cli
from e5spark.job import interrupt
from e5spark.job.interrupt import Interrupted, interruptible
from tests import slow_model
from tests.processes import await_, descendants, parent
from tests.tables import Job

SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143}
ROWS, CHUNK = 60, 5


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Ctrl-C works, which background processes of a shell, and their children, ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The exit codes with which a process would have ended at once."""
    codes: list[int] = []
    before = {number: signal.getsignal(number) for number in SIGNALS}
    monkeypatch.setattr(cli, "exit_now", codes.append)
    yield codes
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


@pytest.mark.parametrize(("number", "code"), SIGNALS.items())
def test_a_signal_ends_a_command_with_its_document_and_exit_code(
    number: signal.Signals,
    code: int,
    ends: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("e5spark.cli.init.run", lambda _: signal.raise_signal(number))
    assert cli.main(["init"]) == code
    document = json.loads(capsys.readouterr().out)
    assert (document["status"], document["exit_code"]) == ("interrupted", code)
    assert "start the same command again" in document["message"]
    assert [record.message for record in caplog.records] == [document["message"]]
    assert ends == []


def test_a_signal_that_a_callback_has_swallowed_still_ends_the_command(
    ends: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def swallow(_: object) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Interrupted:
            raise RuntimeError("The job was cancelled.") from None

    monkeypatch.setattr("e5spark.cli.init.run", swallow)
    assert cli.main(["init"]) == 143
    assert json.loads(capsys.readouterr().out)["status"] == "interrupted"


def test_a_second_signal_ends_the_process_at_once_with_the_document(
    ends: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stubborn(_: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)  # of the same key press
            assert ends == []
            monkeypatch.setattr(interrupt, "_SAME_SECONDS", -1.0)
            signal.raise_signal(signal.SIGTERM)
            assert json.loads(file.read_text("utf-8"))["exit_code"] == 143

    file = tmp_path / "document.json"
    monkeypatch.setattr("e5spark.cli.init.run", stubborn)
    assert cli.main(["init", "--json", str(file)]) == 130
    assert ends == [143]


def test_a_command_that_does_not_end_in_time_is_ended(
    ends: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(_: object) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            await_(lambda: bool(ends))

    monkeypatch.setattr(interrupt, "_GRACE_SECONDS", 0.0)
    monkeypatch.setattr("e5spark.cli.init.run", hang)
    assert cli.main(["init"]) == 143
    assert ends == [143]


def test_a_signal_that_the_process_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible(lambda _: None):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.chaos_sample
def test_a_signal_ends_a_run_in_order_and_the_same_command_continues(
    base: Job, job_file: Callable[..., str], tmp_path: Path
) -> None:
    rows = {"id": range(ROWS), "body": [f"text number {number}" for number in range(ROWS)]}
    pq.write_table(pa.table(rows), tmp_path / "docs.parquet", row_group_size=CHUNK)
    job = job_file(**base, run={"chunk_rows": CHUNK, "concurrent_chunks": 2, "partitions": 1})
    (tmp_path / "slow").mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": slow_model.arm(tmp_path / "slow"),
    }
    commits = tmp_path / "out" / "_e5spark" / "commits"
    for number, code in SIGNALS.items():
        run = subprocess.Popen(
            [sys.executable, "-m", "e5spark", "embed", job],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            restore_signals=True,
        )
        seen = len(list(commits.glob("*")))
        await_(
            lambda seen=seen, run=run: len(list(commits.glob("*"))) > seen or run.poll() is not None
        )
        children = descendants(run.pid)
        run.send_signal(number)
        output, errors = run.communicate(timeout=60)
        assert run.returncode == code, errors
        document = json.loads(output.splitlines()[-1])
        assert (document["status"], document["exit_code"]) == ("interrupted", code)
        assert "Traceback" not in errors
        assert "\tat " not in errors
        assert errors.splitlines()[-1] == f"WARNING e5spark: {document['message']}"
        # The lock is released, and not left to a heartbeat that expires.
        lock = tmp_path / "out" / "_e5spark" / "lock"
        assert [path.stem for path in lock.glob("*.released")] == [
            path.stem for path in lock.glob("*.json")
        ]
        await_(lambda children=children: not any(parent(child) for child in children))
    environment["PYTHONPATH"] = ""
    finished = subprocess.run(
        [sys.executable, "-m", "e5spark", "embed", job],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    document = json.loads(finished.stdout.splitlines()[-1])
    assert document["embedded"] <= ROWS - 2 * CHUNK  # each run has committed a chunk
    ids = sorted(pq.read_table(tmp_path / "out", columns=["id"])["id"].to_pylist())
    assert ids == list(range(ROWS))
