"""Runs that are killed in a commit, and two runs at once: real processes.

CI kills one; `make chaos` kills the others too. ``test_crash_points`` ends a run at every storage
operation, in memory.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.cluster import REPOSITORY
from tests.delta_driver import SHORT_LIVED
from tests.tables import Job, table_of
from tests.trace import Trace

ROWS = {number: f"text number {number}" for number in range(60)}
CHUNK = 20
IN_FLIGHT = 2
NEXT = {
    **{number: text for number, text in ROWS.items() if number >= 5},
    **{number: f"changed {number}" for number in (*range(10, 15), *range(30, 35))},
    **{number: f"new {number}" for number in range(100, 130)},
}
PROCESS = {
    "spark.master": "local[2]",
    "spark.ui.enabled": "false",
    "spark.sql.shuffle.partitions": "2",
    "spark.driver.extraJavaOptions": SHORT_LIVED,
}


@pytest.fixture
def base(base: Job) -> Job:
    """In chunks of CHUNK rows."""
    base["run"] = {"chunk_rows": CHUNK, "concurrent_chunks": IN_FLIGHT, "delete_missing": True}
    return base


@pytest.fixture
def start(base: Job, job_file: Callable[..., str]) -> Callable[..., subprocess.Popen[str]]:
    """Starts the job in a process, which E5SPARK_FAILPOINT may end."""

    def run(crash: str = "") -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "e5spark", "embed", job_file(**base, spark=PROCESS)],
            cwd=REPOSITORY,
            env={**os.environ, "E5SPARK_FAILPOINT": crash},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


def write(rows: dict[int, str], tmp_path: Path) -> None:
    pq.write_table(table_of(rows), tmp_path / "docs.parquet", row_group_size=10)


@pytest.mark.chaos
@pytest.mark.parametrize("crash", ["written:2", "recorded:2", "publishing:2"])
def test_a_first_run_killed_in_a_commit_is_finished_by_the_same_command(
    start: Callable[..., Any],
    embed: Callable[..., Any],
    check: Callable[..., None],
    tmp_path: Path,
    trace: Trace,
    crash: str,
) -> None:
    write(ROWS, tmp_path)
    assert start(crash).wait(200) == -signal.SIGKILL
    report = embed()
    assert report["code"] == 0, report
    check(ROWS)
    # Nothing that was recorded is embedded again. Of two chunks in flight that are both written,
    # none need be recorded yet.
    assert trace.rows() <= len(ROWS) + CHUNK * IN_FLIGHT
    if crash != "written:2":
        assert report["embedded"] <= len(ROWS) - CHUNK
    check_clean(tmp_path / "out")


@pytest.mark.parametrize(
    "crash",
    [
        pytest.param("removing", marks=pytest.mark.chaos_sample),
        *(
            pytest.param(crash, marks=pytest.mark.chaos)
            for crash in (
                *("written:2", "recorded:2", "recorded:3"),
                *("rewritten", "replacing", "removing:2"),
            )
        ),
    ],
)
def test_an_update_killed_in_a_commit_is_finished_by_the_same_command(
    start: Callable[..., Any],
    embed: Callable[..., Any],
    check: Callable[..., None],
    tmp_path: Path,
    trace: Trace,
    crash: str,
) -> None:
    write(ROWS, tmp_path)
    assert embed()["code"] == 0
    write(NEXT, tmp_path)
    trace.mark()
    assert start(crash).wait(200) == -signal.SIGKILL
    report = embed()
    assert report["code"] == 0, report
    check(NEXT)
    assert trace.rows() <= 40 + CHUNK * IN_FLIGHT
    if crash in ("rewritten", "replacing", "removing", "removing:2"):
        assert report["embedded"] == 0
        assert trace.rows() == 40
    check_clean(tmp_path / "out")


@pytest.mark.chaos
@pytest.mark.parametrize(("crash", "again"), [("recorded:2", 60), ("replacing", 0)])
def test_a_run_without_ids_is_begun_again_or_finished(
    start: Callable[..., Any],
    embed: Callable[..., Any],
    check: Callable[..., None],
    base: Job,
    tmp_path: Path,
    crash: str,
    again: int,
) -> None:
    base["input"].pop("id")
    base["run"].pop("delete_missing")
    write(ROWS, tmp_path)
    assert start(crash).wait(200) == -signal.SIGKILL
    assert list((tmp_path / "out").glob("*.parquet")) == []
    report = embed()
    assert (report["code"], report["embedded"]) == (0, again)
    check(ROWS)


@pytest.mark.chaos_sample
def test_one_of_two_concurrent_runs_stops_before_it_embeds(
    start: Callable[..., Any],
    embed: Callable[..., Any],
    check: Callable[..., None],
    tmp_path: Path,
    trace: Trace,
) -> None:
    write(ROWS, tmp_path)
    first = start()
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "_e5spark" / "manifest.json").exists():
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second = embed()
    assert second["code"] == 5, second
    assert "Another run writes to" in second["message"]
    output, _ = first.communicate(timeout=200)
    assert json.loads(output.splitlines()[-1])["embedded"] == len(ROWS)
    assert trace.rows() == len(ROWS)
    check(ROWS)
    assert embed()["embedded"] == 0


def check_clean(out: Path) -> None:
    """Nothing is left over: no staged row, no work list, no record that waits."""
    left = [(out / "_e5spark").glob(f"{name}/*") for name in ("staging", "work")]
    assert list(chain(*left)) == []
    assert list((out / "_e5spark" / "commits").glob("*.json")) == []
