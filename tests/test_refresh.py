"""Columns that pass through: a change in them alone reaches the table, and runs no model."""

import datetime
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cluster import REPOSITORY
from tests.tables import Job, rows_of, table_of
from tests.test_ledger import PROCESS

TEXTS = {number: f"text number {number}" for number in range(60)}
TITLES = {number: f"title {number}" for number in TEXTS}
CHANGED = {**TITLES, **{number: f"another title {number}" for number in range(10, 47)}}
COUNTS = ("code", "refreshed", "embedded", "skipped", "model_rows")


def docs(texts: Mapping[int, str], titles: Mapping[int, str | None]) -> pa.Table:
    """The columns id, body and title."""
    return table_of(texts).append_column("title", pa.array([titles[id] for id in texts]))


@pytest.fixture
def base(base: Job) -> Job:
    """In chunks of 25 rows."""
    base["run"] = {"chunk_rows": 25}
    return base


@pytest.fixture
def run(embed: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., list[Any]]:
    """Runs the job over a table; returns the counts."""

    def sync(table: pa.Table, *overrides: str) -> list[Any]:
        pq.write_table(table, tmp_path / "docs.parquet")
        report = embed(*overrides)
        assert "message" not in report, report
        return [report[name] for name in COUNTS]

    return sync


def rows_by_id(out: Path) -> dict[int, dict[str, Any]]:
    rows = rows_of(out)
    by_id = {row["id"]: row for row in rows}
    assert len(by_id) == len(rows)
    return by_id


def test_changed_titles_are_refreshed_and_keep_their_vectors(
    run: Callable[..., list[Any]], tmp_path: Path
) -> None:
    run(docs(TEXTS, TITLES))
    before = rows_by_id(tmp_path / "out")
    assert run(docs(TEXTS, CHANGED)) == [0, 37, 0, 23, 0]
    after = rows_by_id(tmp_path / "out")
    assert {id: row["title"] for id, row in after.items()} == CHANGED
    assert all(after[id] == {**before[id], "title": CHANGED[id]} for id in before)
    assert run(docs(TEXTS, CHANGED)) == [0, 0, 0, 60, 0]
    left_over = [tmp_path / "out" / "_e5spark" / name for name in ("commits", "staging", "work")]
    assert [list(directory.glob("*")) for directory in left_over] == [[], [], []]


@pytest.mark.parametrize(
    "at",
    [
        pytest.param("removing", marks=pytest.mark.chaos_sample),
        *(
            pytest.param(at, marks=pytest.mark.chaos)
            for at in ("written", "recorded", "rewritten", "replacing", "publishing")
        ),
    ],
)
def test_a_refresh_killed_at_any_instant_is_finished_by_the_same_command(
    run: Callable[..., list[Any]],
    base: Job,
    job_file: Callable[..., str],
    tmp_path: Path,
    at: str,
) -> None:
    run(docs(TEXTS, TITLES))
    before = rows_by_id(tmp_path / "out")
    pq.write_table(docs(TEXTS, CHANGED), tmp_path / "docs.parquet")
    killed = subprocess.run(
        [sys.executable, "-m", "e5spark", "embed", job_file(**base, spark=PROCESS)],
        cwd=REPOSITORY,
        env={**os.environ, "E5SPARK_FAILPOINT": at},
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    refreshed = 37 if at == "written" else 0  # otherwise recorded, and only published now
    assert run(docs(TEXTS, CHANGED)) == [0, refreshed, 0, 60 - refreshed, 0]
    after = rows_by_id(tmp_path / "out")
    assert all(after[id] == {**before[id], "title": CHANGED[id]} for id in before)
    assert after.keys() == before.keys()


def test_rows_are_refreshed_while_others_are_embedded_and_removed(
    run: Callable[..., list[Any]], check: Callable[..., None], tmp_path: Path
) -> None:
    run(docs(TEXTS, TITLES))
    texts = {id: text for id, text in TEXTS.items() if id >= 5}
    texts |= {30: "changed", 50: "changed", 70: "new"}
    titles = {**CHANGED, 70: "title 70"}
    # Of the 37 changed titles, one belongs to a row that is embedded again.
    assert run(docs(texts, titles), "run.delete_missing=true") == [0, 36, 3, 17, 3]
    check(texts)
    after = rows_by_id(tmp_path / "out")
    assert {id: row["title"] for id, row in after.items()} == {id: titles[id] for id in texts}


def test_a_table_with_columns_of_earlier_times_is_refreshed_once(
    run: Callable[..., list[Any]], tmp_path: Path
) -> None:
    run(docs(TEXTS, TITLES))
    without = "run.refresh_columns=false"
    assert run(docs(TEXTS, CHANGED), without) == [0, 0, 0, 60, 0]
    assert rows_by_id(tmp_path / "out")[10]["title"] == "title 10"
    assert run(docs(TEXTS, CHANGED)) == [0, 37, 0, 23, 0]
    assert run(docs(TEXTS, CHANGED)) == [0, 0, 0, 60, 0]


def test_columns_of_any_type_come_back_as_they_were_and_are_not_refreshed_again(
    run: Callable[..., list[Any]], tmp_path: Path
) -> None:
    moment = datetime.datetime(2024, 2, 29, 1, 2, 3, 456789)
    values: dict[str, tuple[pa.DataType, list[Any]]] = {
        "flag": (pa.bool_(), [True, False]),
        "small": (pa.int8(), [-1, 1]),
        "number": (pa.float64(), [float("nan"), -0.0]),
        "amount": (pa.decimal128(20, 3), [Decimal("1.250"), Decimal("-7.000")]),
        "day": (pa.date32(), [datetime.date(1066, 10, 14), datetime.date(2024, 2, 29)]),
        "at": (pa.timestamp("us", "UTC"), [moment, datetime.datetime(1850, 1, 1)]),
        "local": (pa.timestamp("us"), [moment, None]),
        "blob": (pa.binary(), [b"\xff\x00", b""]),
        "tags": (pa.list_(pa.string()), [["a", None], []]),
        "times": (pa.list_(pa.timestamp("us", "UTC")), [[moment], None]),
        "nested": (pa.struct({"a": pa.int32(), "b": pa.string()}), [{"a": 1, "b": None}, None]),
        "map": (pa.map_(pa.string(), pa.int64()), [[("k", 1), ("j", None)], []]),
    }
    columns = {name: pa.array(items, type_) for name, (type_, items) in values.items()}
    table = pa.table({"id": [1, 2], "body": ["a", "b"], **columns})
    assert run(table) == [0, 0, 2, 0, 2]
    assert run(table) == [0, 0, 0, 2, 0]
    for name in values:  # all at once: a run takes a second
        first, second = table[name].to_pylist()
        assert first != second
    swapped = pa.table({**columns, "id": [2, 1], "body": ["b", "a"]}).select(table.column_names)
    assert run(swapped) == [0, 2, 0, 0, 0]
    assert run(swapped) == [0, 0, 0, 2, 0]


def test_all_windows_of_a_split_text_are_refreshed(
    run: Callable[..., list[Any]], tmp_path: Path
) -> None:
    split = ('model.long_text="split"', "model.max_tokens=32", "model.overlap=4")
    texts = {1: " ".join(f"word{number}" for number in range(100)), 2: "short"}
    run(docs(texts, TITLES), *split)
    before = rows_of(tmp_path / "out")
    assert run(docs(texts, {**TITLES, 1: "another title"}), *split) == [0, 1, 0, 1, 0]
    after = rows_of(tmp_path / "out")
    order = ("id", "window")

    def ordered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(rows, key=lambda row: [row[name] for name in order])

    wanted = [{**row, "title": "another title"} if row["id"] == 1 else row for row in before]
    assert len(before) > 4
    assert ordered(after) == ordered(wanted)


def test_duplicates_with_the_same_content_do_not_take_turns(run: Callable[..., list[Any]]) -> None:
    table = pa.table(
        {
            "id": [1, 1, 1],
            "body": ["a", "a", "a"],
            "map": pa.array([[("a", 1)], [("b", 1)], [("c", 1)]], pa.map_(pa.string(), pa.int64())),
            "left": pa.array([None, 5, None], pa.int64()),
            "right": pa.array([5, None, 5], pa.int64()),
        }
    )
    first = 'input.on_duplicate="first"'
    run(table, first)
    for order in ([2, 1, 0], [1, 0, 2]):
        assert run(table.take(order), first) == [0, 0, 0, 1, 0]
