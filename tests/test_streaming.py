"""Runs over the new files of a directory: each reads on from where the last one ended."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.cluster import REPOSITORY
from tests.tables import Job, Rows, rows_of, table_of
from tests.trace import Trace

ONE = {number: f"text number {number}" for number in range(30)}
TWO = {number: f"text number {number}" for number in range(30, 50)}
COUNTS = ("micro_batches", "rows_in", "embedded", "skipped", "model_rows")


@pytest.fixture
def base(base: Job, tmp_path: Path) -> Job:
    """A stream of the files of a directory, in chunks of 20 rows."""
    base["input"] |= {
        "path": str(tmp_path / "docs"),
        "trigger": "available_now",
        "checkpoint_location": str(tmp_path / "checkpoint"),
    }
    base["run"] = {"chunk_rows": 20, "concurrent_chunks": 1}
    return base


def add(directory: Path, name: str, rows: Rows) -> Path:
    directory.mkdir(exist_ok=True)
    pq.write_table(table_of(rows), directory / name)
    return directory / name


def test_each_run_embeds_the_rows_since_the_last(
    embed: Callable[..., Any], check: Callable[..., None], tmp_path: Path
) -> None:
    add(tmp_path / "docs", "one.parquet", ONE)
    report = embed()
    assert (report["code"], [report[name] for name in COUNTS]) == (0, [1, 30, 30, 0, 30])
    report = embed()
    assert (report["code"], [report[name] for name in COUNTS]) == (0, [0, 0, 0, 0, 0])
    add(tmp_path / "docs", "two.parquet", {**TWO, 3: "changed", 4: ONE[4]})
    report = embed()
    assert (report["code"], [report[name] for name in COUNTS]) == (0, [1, 22, 21, 1, 21])
    check({**ONE, **TWO, 3: "changed"})


def test_the_report_is_the_sum_of_all_micro_batches(
    embed: Callable[..., Any], check: Callable[..., None], base: Job, tmp_path: Path
) -> None:
    base["input.options"] = {"maxFilesPerTrigger": 1}
    for number, (name, rows) in enumerate({"one": ONE, "two": TWO, "three": ONE}.items()):
        file = add(tmp_path / "docs", f"{name}.parquet", rows)
        os.utime(file, (2e9 + number, 2e9 + number))
    report = embed()
    assert (report["code"], [report[name] for name in COUNTS]) == (0, [3, 80, 50, 30, 50])
    assert (report["rows"], report["ok"], report["chunks"]) == (50, 50, 3)
    check({**ONE, **TWO})


def test_a_new_file_with_an_old_date_is_read(
    embed: Callable[..., Any], check: Callable[..., None], tmp_path: Path
) -> None:
    add(tmp_path / "docs", "one.parquet", ONE)
    assert embed()["code"] == 0
    os.utime(add(tmp_path / "docs", "old.parquet", TWO), (1e9, 1e9))
    assert embed()["embedded"] == 20
    check({**ONE, **TWO})


def test_a_stream_refreshes_and_gains_columns(
    embed: Callable[..., Any], base: Job, tmp_path: Path
) -> None:
    def write(name: str, records: list[dict[str, Any]]) -> None:
        directory = tmp_path / "docs"
        directory.mkdir(exist_ok=True)
        (directory / name).write_text("\n".join(map(json.dumps, records)), "utf-8")

    base["input"] |= {"format": "jsonl", "schema": "id BIGINT, body STRING, title STRING"}
    docs = [{"id": id, "body": f"text {id}", "title": f"title {id}"} for id in range(6)]
    write("one.jsonl", docs)
    assert embed()["embedded"] == 6
    write("two.jsonl", [{**docs[2], "title": "another"}, {**docs[3], "body": "changed"}])
    report = embed()
    assert [report[name] for name in ("embedded", "refreshed", "model_rows")] == [1, 1, 1]
    write("three.jsonl", [{**docs[4], "lang": "en"}, {"id": 9, "body": "new", "lang": "de"}])
    report = embed("input.schema=id BIGINT, body STRING, lang STRING")
    assert [report[name] for name in ("embedded", "refreshed", "model_rows")] == [1, 1, 1]
    rows = {
        row["id"]: (row["body"], row["title"], row["lang"]) for row in rows_of(tmp_path / "out")
    }
    assert rows == {
        **{id: (f"text {id}", f"title {id}", None) for id in (0, 1, 5)},
        2: ("text 2", "another", None),
        3: ("changed", "title 3", None),
        4: ("text 4", "title 4", "en"),
        9: ("new", None, "de"),
    }


@pytest.mark.chaos
@pytest.mark.parametrize(
    "crash",
    [
        "recorded:3",
        "publishing:2",
        pytest.param("recorded:4", marks=pytest.mark.chaos_sample),
    ],
)
def test_a_run_killed_in_any_micro_batch_is_finished_by_the_same_command(
    embed: Callable[..., Any],
    check: Callable[..., None],
    base: Job,
    job_file: Callable[..., str],
    tmp_path: Path,
    trace: Trace,
    crash: str,
) -> None:
    base["input.options"] = {"maxFilesPerTrigger": 1}
    base["spark"] = {"spark.master": "local[2]", "spark.ui.enabled": "false"}
    for number, rows in enumerate([ONE, {**TWO, 1: "changed", 2: "changed too"}]):
        file = add(tmp_path / "docs", f"{number}.parquet", rows)
        os.utime(file, (2e9 + number, 2e9 + number))
    killed = subprocess.run(
        [sys.executable, "-m", "e5spark", "embed", job_file(**base)],
        cwd=REPOSITORY,
        env={**os.environ, "E5SPARK_FAILPOINT": crash},
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert embed()["code"] == 0
    assert trace.rows() == 52  # no row twice
    check({**ONE, **TWO, 1: "changed", 2: "changed too"})
    assert embed()["rows_in"] == 0


def test_an_error_in_a_micro_batch_is_that_of_a_batch_run_and_it_is_read_again(
    embed: Callable[..., Any], check: Callable[..., None], tmp_path: Path
) -> None:
    add(tmp_path / "docs", "one.parquet", ONE)
    assert embed()["code"] == 0
    add(tmp_path / "docs", "two.parquet", TWO)
    add(tmp_path / "docs", "three.parquet", {30: "another text", 60: "new"})
    refused = embed()
    assert (refused["code"], refused["error"], refused["model_rows"]) == (3, "InputError", 0)
    assert "duplicate ids in column 'id', 1 of them: 30 (2 rows)" in refused["message"]
    check(ONE)
    assert embed('input.on_duplicate="first"')["embedded"] == 21
    assert {row["id"] for row in rows_of(tmp_path / "out")} == {*ONE, *TWO, 60}


def test_a_file_that_cannot_be_read_is_an_input_error(
    embed: Callable[..., Any], tmp_path: Path
) -> None:
    add(tmp_path / "docs", "one.parquet", ONE)
    assert embed()["code"] == 0
    (tmp_path / "docs" / "two.parquet").write_bytes(b"no Parquet" * 50)
    refused = embed()
    assert (refused["code"], refused["error"], refused["model_rows"]) == (3, "InputError", 0)
    assert "two.parquet" in refused["message"]


def test_an_empty_directory_of_known_columns_gives_an_empty_table(
    embed: Callable[..., Any], check: Callable[..., None], tmp_path: Path
) -> None:
    add(tmp_path / "docs", "empty.parquet", {})
    assert (embed()["code"], rows_of(tmp_path / "out")) == (0, [])
    add(tmp_path / "docs", "one.parquet", ONE)
    assert embed()["embedded"] == 30
    check(ONE)


def test_new_files_of_json_are_read(embed: Callable[..., Any], base: Job, tmp_path: Path) -> None:
    base["input"] |= {"format": "jsonl", "columns": ["id"]}
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.jsonl").write_text('{"id": 1, "body": "one", "more": 2}\n')
    assert embed()["embedded"] == 1
    (tmp_path / "docs" / "b.jsonl").write_text('{"id": 2, "body": "two", "more": 2}\n')
    assert embed()["embedded"] == 1
    assert sorted((row["id"], row["status"]) for row in rows_of(tmp_path / "out")) == [
        (1, "ok"),
        (2, "ok"),
    ]


def test_a_hash_of_the_texts_can_be_the_id(
    embed: Callable[..., Any], base: Job, tmp_path: Path
) -> None:
    base["input"] |= {"id": "", "hash_id": True, "columns": ["body"]}
    add(tmp_path / "docs", "one.parquet", {1: "a", 2: "b", 3: "a"})
    assert embed()["embedded"] == 2
    add(tmp_path / "docs", "two.parquet", {4: "b", 5: "c"})
    assert embed()["embedded"] == 1


@pytest.mark.parametrize("lost", ["another output", "the output made anew"])
def test_a_stream_checkpoint_of_another_table_is_refused(
    embed: Callable[..., Any], check: Callable[..., None], tmp_path: Path, lost: str
) -> None:
    add(tmp_path / "docs", "one.parquet", ONE)
    assert embed()["code"] == 0
    out = tmp_path / "out"
    if lost == "another output":
        out = tmp_path / "other"
    else:
        shutil.rmtree(out)
    refused = embed(f"output.path={out}")
    assert (refused["code"], refused["error"]) == (5, "ConflictError")
    assert "Give a new input.checkpoint_location" in refused["message"]
    fresh = f"input.checkpoint_location={tmp_path / 'fresh'}"
    assert embed(f"output.path={out}", fresh)["embedded"] == 30
    check(ONE, out=out)


def test_a_new_stream_checkpoint_for_the_same_table_embeds_nothing(
    embed: Callable[..., Any], tmp_path: Path
) -> None:
    add(tmp_path / "docs", "one.parquet", ONE)
    assert embed()["code"] == 0
    report = embed(f"input.checkpoint_location={tmp_path / 'fresh'}")
    assert [report[name] for name in COUNTS] == [1, 30, 0, 30, 0]


def test_a_batch_run_syncs_the_same_table_with_its_source(
    embed: Callable[..., Any], check: Callable[..., None], tmp_path: Path
) -> None:
    path = add(tmp_path / "docs", "one.parquet", ONE)
    assert embed()["code"] == 0
    path.unlink()
    add(tmp_path / "docs", "two.parquet", TWO)
    report = embed("input.trigger=batch", "run.delete_missing=true")
    assert (report["embedded"], report["deleted"]) == (20, 30)
    check(TWO)
    report = embed()
    assert (report["rows_in"], report["embedded"]) == (20, 0)


def test_a_single_file_is_no_stream(embed: Callable[..., Any], base: Job, tmp_path: Path) -> None:
    base["input"]["path"] = str(add(tmp_path / "docs", "one.parquet", ONE))
    refused = embed()
    assert (refused["code"], refused["model_rows"]) == (3, 0)
    assert "basePath" in refused["message"]


@pytest.mark.parametrize("place", ["docs/checkpoint", "out", "out/checkpoint"])
def test_a_checkpoint_has_a_directory_of_its_own(
    embed: Callable[..., Any], tmp_path: Path, place: str
) -> None:
    add(tmp_path / "docs", "one.parquet", ONE)
    refused = embed(f"input.checkpoint_location={tmp_path / place}")
    assert (refused["code"], refused["model_rows"]) == (2, 0)
    assert "input.checkpoint_location" in refused["message"]
