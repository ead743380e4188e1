"""The progress of a run, in the log and on a terminal: from rows, and never more than there are."""

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from e5spark.job import progress as module
from e5spark.job.progress import Progress
from e5spark.spark import tally
from e5spark.spark.tally import Tally


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number is written, and a line comes at the end only."""
    monkeypatch.setattr(tally, "_SECONDS", -1.0)
    monkeypatch.setattr(module, "_LINE_SECONDS", 3600.0)


def progress(rows: int = 300, *, on_this_machine: bool = True) -> Progress:
    return Progress(rows=rows, chunks=2, model="e5 in bf16", on_this_machine=on_this_machine)


def test_the_log_says_what_runs_and_how_it_ended(caplog) -> None:
    caplog.set_level("INFO", logger="e5spark")
    with progress() as run:
        run.chunk(1, rows=100, tokens=1000)
        half = run.state().line
        run.chunk(2, rows=200, tokens=5000)
    first, last = (record.message for record in caplog.records)
    assert first == "Embedding 300 rows with e5 in bf16, in 2 chunks."
    assert half.startswith("100 of 300 rows (33%), 1 of 2 chunks committed, ")
    assert " texts/s, " in half
    assert " tokens/s, " in half
    assert last.startswith("300 of 300 rows (100%), 2 of 2 chunks committed, ")
    assert last.endswith(" 0:00:00 left")


def test_the_log_gets_a_line_now_and_then_although_no_chunk_ends(caplog, monkeypatch) -> None:
    caplog.set_level("INFO", logger="e5spark")
    monkeypatch.setattr(module, "_LINE_SECONDS", 0.001)
    with progress() as run:
        directory = run.begin(1, rows=100)
        Tally(Path(directory, "0-0")).finish(40)
        while not any("40 of 300 rows" in record.message for record in caplog.records):
            pass


def test_rows_count_while_their_window_is_embedded(tmp_path) -> None:
    task = Tally(tmp_path / "0-7")
    batch = task.window(200)
    batch(0.25, 1000)
    assert tally.read(tmp_path) == (50, 1000)
    batch(0.75, 400)
    task.finish(200)
    task.window(100)(0.5, 10)
    assert tally.read(tmp_path) == (250, 1410)


def test_a_task_that_is_tried_again_counts_once(tmp_path) -> None:
    for attempt, rows in ((3, 80), (9, 20)):
        Tally(tmp_path / f"0-{attempt}").finish(rows)
    Tally(tmp_path / "1-4").finish(10)
    assert tally.read(tmp_path) == (90, 0)


def test_a_chunk_that_begins_again_or_counts_too_much_never_exceeds_its_rows() -> None:
    with progress() as run:
        Tally(Path(run.begin(1, rows=100), "0-0")).finish(90)
        assert run.state().rows == 90
        again = run.begin(1, rows=100)
        assert run.state().rows == 0
        Tally(Path(again, "0-1")).finish(500)
        assert run.state().rows == 100
        run.chunk(1, rows=100, tokens=10)
        assert (run.state().rows, run.state().tokens) == (100, 10)


def test_only_this_machine_s_tasks_get_a_directory_and_it_goes_with_the_run(tmp_path) -> None:
    with progress() as run:
        directory = Path(run.begin(1, rows=100))
        assert directory.is_dir()
    assert not directory.parent.exists()
    Tally(directory / "0-0").finish(1)  # a task that outlives its run
    with progress(on_this_machine=False) as run:
        assert run.begin(1, rows=100) is None
    assert tally.tally(str(tmp_path / "elsewhere")) is None


def test_a_terminal_gets_a_bar_and_no_line(caplog, monkeypatch) -> None:
    caplog.set_level("INFO", logger="e5spark")
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=160)
    monkeypatch.setattr(module, "terminal", lambda: console)
    with progress() as run:
        run.chunk(1, rows=300, tokens=1000)
    text = screen.getvalue()
    for part in ("e5 in bf16", "300/300", "texts/s", "tokens/s", "0:00:00 left"):
        assert part in text
    assert caplog.records == []


def test_without_rich_or_a_terminal_there_are_lines(monkeypatch) -> None:
    from e5spark.job.terminal import terminal

    assert terminal() is None
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert terminal() is not None
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert terminal() is None
