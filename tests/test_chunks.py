"""The sizes of the parts of a run, and the parts of its work list."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from pyspark.sql import DataFrame, SparkSession

from e5spark.job.chunks import Chunk, Sizes, sizes, write_work
from e5spark.job.diff import KIND
from e5spark.tables.sinks.commit import Commits


@pytest.mark.parametrize(("cpus", "slots"), [("1", 2), ("2", 1), ("4", 1)])
def test_a_session_has_as_many_slots_as_tasks_run_at_once(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch, cpus: str, slots: int
) -> None:
    """Of the two cores that the session has."""
    monkeypatch.setattr(type(spark.conf), "get", lambda *_: cpus)
    chunks = sizes(spark, rows=0, tasks=0, concurrent_chunks=2)
    assert chunks == Sizes(rows=20_000, tasks=slots, concurrent_chunks=2)


def test_sizes_of_the_config_are_kept(spark: SparkSession) -> None:
    chunks = sizes(spark, rows=7, tasks=3, concurrent_chunks=1)
    assert chunks == Sizes(rows=7, tasks=3, concurrent_chunks=1, forced=True)


def test_rows_for_one_task_need_no_count_of_the_slots() -> None:
    no_session = cast(SparkSession, None)
    chunks = sizes(no_session, rows=0, tasks=0, concurrent_chunks=2, expected=500)
    assert chunks == Sizes(rows=20_000, tasks=1, concurrent_chunks=2)


@pytest.mark.parametrize("expected", [None, 3, 5])
def test_each_row_of_a_work_list_is_in_one_chunk_of_its_kind(
    spark: SparkSession, tmp_path: Path, expected: int | None
) -> None:
    """Whether the number of rows is known, and whatever it is: the source may have changed."""
    kinds = {"a": "append", "b": "deferred", "c": "append"}
    rows = spark.createDataFrame(list(kinds.items()), f"id string, {KIND} string")
    chunks = _write_work(rows, tmp_path, expected=expected)
    assert [(chunk.number, chunk.kind, chunk.rows) for chunk in chunks] == [
        (1, "append", 2),
        (2, "deferred", 1),
    ]
    for chunk in chunks:
        stored = spark.read.schema("id string").parquet(*chunk.paths).collect()
        assert {row.id for row in stored} == {id for id in kinds if kinds[id] == chunk.kind}


@pytest.mark.parametrize("expected", [None, 1])
def test_a_work_list_without_rows_has_no_chunk(
    spark: SparkSession, tmp_path: Path, expected: int | None
) -> None:
    rows = spark.createDataFrame([], f"id string, {KIND} string")
    assert _write_work(rows, tmp_path, expected=expected) == []


def _write_work(df: DataFrame, directory: Path, *, expected: int | None) -> list[Chunk]:
    ledger = SimpleNamespace(work_path=lambda part: str(directory / part))
    limits = Sizes(rows=4, tasks=1, concurrent_chunks=1)
    commits = cast(Commits, SimpleNamespace(ledger=ledger))
    return write_work(df, commits, limits, expected=expected)
