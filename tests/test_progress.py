"""The progress of a run, in the log and on a terminal."""

from e5spark.job.progress import Progress


def test_each_chunk_logs_the_progress_of_the_run(caplog) -> None:
    caplog.set_level("INFO", logger="e5spark")
    progress = Progress(rows=300, chunks=2)
    progress.chunk(rows=100, tokens=1000)
    progress.chunk(rows=200, tokens=5000)
    first, last = (record.message for record in caplog.records)
    assert first.startswith("chunk 1 of 2: 100 of 300 rows (33%), ")
    assert " texts/s, " in first
    assert " tokens/s, " in first
    assert last.startswith("chunk 2 of 2: 300 of 300 rows (100%), ")
    assert last.endswith(" 0:00:00 left")


def test_on_a_terminal_the_bar_ends_its_line_with_the_last_chunk(monkeypatch, capsys) -> None:
    progress = Progress(rows=2, chunks=2)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    progress.chunk(rows=1, tokens=5)
    half = capsys.readouterr().err
    progress.chunk(rows=1, tokens=5)
    whole = capsys.readouterr().err
    assert half.startswith("\r")
    assert half.count("█") == half.count("░") == 15
    assert not half.endswith("\n")
    assert whole.count("█") == 30
    assert whole.endswith("\n")
