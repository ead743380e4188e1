"""A table that is synced with its source again and again: each run embeds what it must."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from e5spark.cli import main
from tests.frames import to_arrow
from tests.tables import Job, Rows, rows_of, table_of

WORDS = ("rain", "hill", "library", "tide", "bread", "stone", "river")
FIRST = {number: f"{WORDS[number % 7]} and {WORDS[number % 5]} {number}" for number in range(60)}


@pytest.fixture
def base(base: Job) -> Job:
    """In chunks of 25 rows."""
    base["run"] = {"chunk_rows": 25}
    return base


@pytest.fixture
def embed(embed: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs the job over some rows, or a table of other columns."""

    def run(docs: Rows | pa.Table, *overrides: str) -> dict[str, Any]:
        table = docs if isinstance(docs, pa.Table) else table_of(docs)
        pq.write_table(table, tmp_path / "docs.parquet")
        return embed(*overrides)

    return run


def test_second_run_embeds_nothing(
    embed: Callable[..., Any], check: Callable[..., None], tmp_path: Path
) -> None:
    first = embed(FIRST)
    assert (first["code"], first["embedded"], first["chunks"]) == (0, 60, 3)
    before = files(tmp_path / "out")
    second = embed(FIRST)
    assert second["code"] == 0
    counts = ("model_rows", "embedded", "skipped", "deleted", "chunks", "rows")
    assert [second[name] for name in counts] == [0, 0, 60, 0, 0, 0]
    assert second["epoch"] > first["epoch"]
    assert files(tmp_path / "out") == before
    check(FIRST)


def test_only_new_and_changed_rows_are_embedded(
    embed: Callable[..., Any], check: Callable[..., None]
) -> None:
    embed(FIRST)
    changed = {number: f"changed {number}" for number in range(0, 37)}
    new = {number: f"new {number}" for number in range(100, 130)}
    wanted = {**FIRST, **changed, **new}
    report = embed(wanted)
    assert (report["model_rows"], report["embedded"], report["skipped"]) == (67, 67, 23)
    check(wanted)


def test_a_lock_that_was_removed_costs_no_rows(
    embed: Callable[..., Any], check: Callable[..., None], tmp_path: Path
) -> None:
    embed(FIRST)
    shutil.rmtree(tmp_path / "out" / "_e5spark" / "lock")
    wanted = {**FIRST, **{number: f"new {number}" for number in range(100, 130)}}
    report = embed(wanted)
    assert (report["code"], report["epoch"], report["embedded"]) == (0, 2, 30)
    check(wanted)


@pytest.mark.parametrize("command", ["embed", "compact"])
def test_rows_without_a_known_commit_are_neither_doubled_nor_changed(
    embed: Callable[..., Any], base: Job, job_file: Callable[..., str], tmp_path: Path, command: str
) -> None:
    embed(FIRST)
    state = tmp_path / "out" / "_e5spark"
    for name in ("commits", "done", "lock"):
        shutil.rmtree(state / name)
    before, manifest = files(tmp_path / "out"), (state / "manifest.json").read_bytes()
    if command == "embed":
        refused = embed(FIRST, "model.max_tokens=64")
        assert (refused["code"], refused["model_rows"]) == (5, 0)
        assert "its directories commits and done are empty or missing" in refused["message"]
    else:
        assert main(["compact", job_file(**base)]) == 5
    assert files(tmp_path / "out") == before
    assert (state / "manifest.json").read_bytes() == manifest


def test_a_run_that_ended_before_its_first_commit_is_begun_again(
    embed: Callable[..., Any], check: Callable[..., None], tmp_path: Path
) -> None:
    assert embed({None: "no id"})["code"] == 3
    assert (tmp_path / "out" / "_e5spark" / "manifest.json").exists()
    assert embed(FIRST)["code"] == 0
    check(FIRST)


def test_changed_rows_alone_are_replaced(
    embed: Callable[..., Any], check: Callable[..., None]
) -> None:
    embed(FIRST)
    wanted = {**FIRST, **{number: f"changed {number}" for number in range(37)}}
    assert embed(wanted)["model_rows"] == 37
    check(wanted)
    assert embed(wanted)["model_rows"] == 0


def test_missing_rows_stay_unless_delete_missing_is_set(
    embed: Callable[..., Any], check: Callable[..., None]
) -> None:
    embed(FIRST)
    fewer = {number: text for number, text in FIRST.items() if number >= 10}
    assert embed(fewer)["deleted"] == 0
    check(FIRST)
    report = embed(fewer, "run.delete_missing=true")
    assert (report["deleted"], report["model_rows"]) == (10, 0)
    check(fewer)


def test_an_empty_input_does_not_empty_a_table(
    embed: Callable[..., Any], check: Callable[..., None]
) -> None:
    embed(FIRST)
    refused = embed({}, "run.delete_missing=true")
    assert (refused["code"], refused["error"]) == (3, "InputError")
    assert "The input has no rows" in refused["message"]
    assert "remove the output" in refused["message"]
    check(FIRST)
    assert embed({})["code"] == 0
    check(FIRST)


def test_an_empty_input_keeps_an_empty_table(embed: Callable[..., Any], tmp_path: Path) -> None:
    assert embed({}, "run.delete_missing=true")["code"] == 0
    assert embed({}, "run.delete_missing=true")["code"] == 0
    assert pq.read_table(tmp_path / "out").num_rows == 0


def test_a_row_can_change_while_others_leave_and_come(
    embed: Callable[..., Any], check: Callable[..., None]
) -> None:
    embed(FIRST)
    wanted = {number: text for number, text in FIRST.items() if number >= 10}
    wanted |= {10: "changed", 200: "new", 11: None}
    report = embed(wanted, "run.delete_missing=true")
    assert (report["deleted"], report["embedded"], report["model_rows"]) == (10, 3, 2)
    check(wanted)


def test_error_rows_are_embedded_again_by_each_run(
    embed: Callable[..., Any], tmp_path: Path, poisoned_model: str, poison: str
) -> None:
    rows = {1: f"a {poison} b", 2: "fine"}
    for expected in ((2, 0), (1, 1), (1, 1)):
        report = embed(rows, f"model.name={poisoned_model}")
        assert (report["code"], report["error"]) == (4, "GateError")
        assert (report["embedded"], report["skipped"]) == expected
        assert sorted(row["id"] for row in rows_of(tmp_path / "out")) == [1, 2]


def test_error_rows_are_embedded_once_the_cause_is_gone(
    embed: Callable[..., Any], check: Callable[..., None], tmp_path: Path
) -> None:
    embed(FIRST)
    # As if the engine had failed on some rows: same content, same fingerprint.
    failed = {3, 17, 40}
    for path in (tmp_path / "out").glob("*.parquet"):
        table = pq.read_table(path)
        rows = table.to_pylist()
        for row in rows:
            if row["id"] in failed:
                row |= {"status": "error", "error": "out of memory", "embedding": None}
        pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    for sidecar in (tmp_path / "out").glob(".*.crc"):
        sidecar.unlink()
    report = embed(FIRST)
    assert (report["code"], report["model_rows"], report["skipped"]) == (0, 3, 57)
    check(FIRST)


@pytest.mark.parametrize(
    ("ids", "sentence"),
    [
        (
            [1, 2, 2, 3, 3, 3],
            r"duplicate ids in column 'id', 2 of them: 2 \(2 rows\), 3 \(3 rows\)\.",
        ),
        ([1, None, 3, 4, None, 6], "2 rows have no id in column 'id'"),
    ],
)
def test_null_and_duplicate_ids_stop_the_job_before_it_embeds(
    embed: Callable[..., Any], tmp_path: Path, ids: list[int | None], sentence: str
) -> None:
    table = pa.table({"id": pa.array(ids, pa.int64()), "body": list("abcdef")})
    refused = embed(table)
    assert (refused["code"], refused["model_rows"]) == (3, 0)
    assert re.search(sentence, refused["message"])
    assert list((tmp_path / "out").glob("*.parquet")) == []


def test_of_duplicates_the_first_by_content_hash_is_kept(
    embed: Callable[..., Any], tmp_path: Path
) -> None:
    kept = []
    for ids, bodies in (([1, 2, 2, 3], "abcd"), ([3, 2, 2, 1], "dcba")):
        docs = pa.table({"id": ids, "body": list(bodies)})
        out = tmp_path / f"out{len(kept)}"
        report = embed(docs, 'input.on_duplicate="first"', f"output.path={out}")
        assert (report["code"], report["embedded"], report["model_rows"]) == (0, 3, 3)
        assert (report["rows_in"], report["duplicates"]) == (3, 1)
        kept.append(sorted((row["id"], row["body"]) for row in rows_of(out)))
    assert kept[0] == kept[1]


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("model.max_tokens=64", "max_tokens is 512, this run's is 64"),
        ("model.dim=8", "dim is 32, this run's is 8"),
        ('model.prompts={{query="Q: ", passage="P: "}}', 'prompts is {{"query": "query: "'),
        ('model.name="{other}"', "model weights is [0-9a-f]{{12}}"),
        ('model.output_type="binary"', 'output_type is "float32", this run\'s is "binary"'),
    ],
)
def test_other_vectors_are_refused_by_the_part_that_differs(
    embed: Callable[..., Any], tmp_path: Path, new_model: str, override: str, part: str
) -> None:
    embed({1: "one"})
    before = files(tmp_path / "out")
    refused = embed({1: "one", 2: "two"}, override.format(other=new_model), "model.force_dim=true")
    assert (refused["code"], refused["model_rows"]) == (5, 0)
    assert re.search(part.format(), refused["message"])
    assert files(tmp_path / "out") == before


def test_a_table_keeps_its_precision_when_the_job_names_none(embed: Callable[..., Any]) -> None:
    first = embed({1: "one"}, "model.precision=bf16", "model.engine=torch")
    assert (first["code"], first["fingerprint_parts"]["precision"]) == (0, "bf16")
    second = embed({1: "one", 2: "two"}, "model.engine=torch")
    assert (second["code"], second["model_rows"], second["skipped"]) == (0, 1, 1)
    assert second["fingerprint"] == first["fingerprint"]


def test_other_columns_are_refused_by_name(embed: Callable[..., Any]) -> None:
    assert embed({1: "a"})["code"] == 0
    more = pa.table({"id": [1, 2], "body": ["a", "b"], "url": ["u", "v"]})
    refused = embed(more, "run.schema=refuse")
    assert (refused["code"], refused["model_rows"]) == (5, 0)
    assert "the output has no 'url' (string). run.schema is" in refused["message"]
    assert embed(more, 'input.columns=["id", "body"]')["embedded"] == 1


def test_windows_of_a_changed_text_are_all_replaced(
    embed: Callable[..., Any], tmp_path: Path
) -> None:
    long = " ".join(f"word{number}" for number in range(200))
    split = ('model.long_text="split"', "model.max_tokens=32", "model.overlap=4")
    embed({1: long, 2: "short", 3: None}, *split)
    windows = [row for row in rows_of(tmp_path / "out") if row["id"] == 1]
    assert len(windows) > 5
    assert embed({1: long, 2: "short", 3: None}, *split)["embedded"] == 0
    report = embed({1: "now short", 2: "short", 3: None}, *split)
    assert (report["embedded"], report["skipped"]) == (1, 2)
    rows = sorted((row["id"], row["body"]) for row in rows_of(tmp_path / "out"))
    assert rows == [(1, "now short"), (2, "short"), (3, None)]


def test_a_change_in_any_text_column_or_role_is_a_change(
    embed: Callable[..., Any], base: Job
) -> None:
    base["embed"] = {"text": ["title", "body"], "role_column": "role"}
    rows = [
        {"id": "a", "title": "ab", "body": "c", "role": "query"},
        {"id": "b", "title": "t", "body": "b", "role": "passage"},
        {"id": "c", "title": "t", "body": None, "role": "passage"},
    ]

    def run() -> int:
        report = embed(pa.Table.from_pylist(rows))
        assert report["code"] == 0
        return report["model_rows"]

    assert run() == 5
    assert run() == 0
    rows[0] |= {"title": "a", "body": "bc"}  # the same characters, cut elsewhere
    assert run() == 2
    rows[1]["role"] = "query"
    assert run() == 2
    rows[2]["body"] = ""
    assert run() == 1  # an empty text is not null, and is not embedded


def test_without_an_id_a_complete_output_is_refused_with_advice(
    embed: Callable[..., Any], check: Callable[..., None], base: Job, tmp_path: Path
) -> None:
    base["input"].pop("id")
    assert embed(FIRST)["embedded"] == 60
    check(FIRST)
    before = files(tmp_path / "out")
    titles = pa.array([f"title {number}" for number in FIRST])
    for docs in (FIRST, table_of(FIRST).append_column("title", titles)):
        refused = embed(docs)
        assert (refused["code"], refused["model_rows"]) == (5, 0)
        assert "Set input.id" in refused["message"]
        assert files(tmp_path / "out") == before


def test_a_hash_of_the_texts_can_be_the_id(
    embed: Callable[..., Any], base: Job, tmp_path: Path
) -> None:
    base["input"] |= {"id": "", "hash_id": True}
    report = embed(pa.table({"body": ["a", "b", "a", "c"]}))
    assert (report["embedded"], report["model_rows"], report["duplicates"]) == (3, 3, 1)
    report = embed(pa.table({"body": ["c", "a", "d", "d", "a"]}))
    assert (report["embedded"], report["model_rows"], report["duplicates"]) == (1, 1, 2)
    rows = rows_of(tmp_path / "out")
    assert sorted(row["body"] for row in rows) == ["a", "b", "c", "d"]
    assert all(len(row["id"]) == 64 for row in rows)


def test_plain_readers_see_the_rows_and_no_column_more(
    embed: Callable[..., Any], spark: SparkSession, tmp_path: Path
) -> None:
    embed(FIRST)
    out = str(tmp_path / "out")
    wanted = {**FIRST, 1: "changed", 70: "new", 71: None}
    wanted.pop(5)
    assert embed(wanted, "run.delete_missing=true")["deleted"] == 1
    names = [
        "id",
        "body",
        "embedding",
        "n_tokens",
        "truncated",
        "already_prompted",
        "status",
        "error",
    ]
    names += ["content_hash", "embedding_fp"]
    by_arrow = pq.read_table(out).sort_by("id")
    assert by_arrow.column_names == names
    assert {row["id"]: row["body"] for row in by_arrow.to_pylist()} == wanted
    by_spark = to_arrow(spark.read.parquet(out).orderBy("id"))
    assert by_spark.to_pylist() == by_arrow.to_pylist()
    by_pandas = pd.read_parquet(out).sort_values("id")
    assert list(by_pandas.columns) == names
    by_duckdb = duckdb.sql(f"FROM '{out}/**/*.parquet' ORDER BY id").fetchall()
    assert [row[:2] for row in by_duckdb] == sorted(wanted.items())
    for number, vector in enumerate(by_arrow["embedding"].to_pylist()):
        value = by_duckdb[number][2]
        assert (None if value is None else list(value)) == vector
        np.testing.assert_array_equal(by_pandas["embedding"].iloc[number], vector)


def test_a_vector_column_says_where_it_comes_from(
    embed: Callable[..., Any], spark: SparkSession, tmp_path: Path
) -> None:
    document = embed(FIRST)
    embed({**FIRST, 1: "changed"})  # what is rewritten keeps it
    out = tmp_path / "out"
    metadata = spark.read.parquet(str(out)).schema["embedding"].metadata
    assert metadata["e5spark.fingerprint"] == document["fingerprint"]
    assert {row["embedding_fp"] for row in rows_of(out)} == {document["fingerprint"][:16]}
    manifest = json.loads((out / "_e5spark" / "manifest.json").read_text())
    assert manifest["fingerprint"] == document["fingerprint"]
    assert (manifest["format"], manifest["dim"], manifest["id"]) == (1, 32, "id")


def test_compact_merges_files_and_keeps_rows(
    embed: Callable[..., Any],
    check: Callable[..., None],
    base: Job,
    job_file: Callable[..., str],
    tmp_path: Path,
) -> None:
    embed(FIRST, "run.partitions=2")
    assert len(files(tmp_path / "out")) >= 6
    before = sorted(rows_of(tmp_path / "out"), key=lambda row: row["id"])
    assert main(["compact", job_file(**base)]) == 0
    assert len(files(tmp_path / "out")) == 1
    assert sorted(rows_of(tmp_path / "out"), key=lambda row: row["id"]) == before
    assert embed({**FIRST, 1: "changed"})["model_rows"] == 1
    check({**FIRST, 1: "changed"})


def test_a_catalog_table_is_updated_by_name(
    embed: Callable[..., Any], base: Job, spark: SparkSession
) -> None:
    base["output"] = {"table": "updated_docs"}
    try:
        assert embed(FIRST)["embedded"] == 60
        wanted = {**FIRST, 1: "changed", 70: "new"}
        assert embed(wanted)["model_rows"] == 2
        rows = spark.table("updated_docs").select("id", "body").collect()
        assert dict(map(tuple, rows)) == wanted
        assert len(rows) == len(wanted)
        properties = dict(map(tuple, spark.sql("SHOW TBLPROPERTIES updated_docs").collect()))
        assert len(properties["e5spark.fingerprint"]) == 64
    finally:
        spark.sql("DROP TABLE IF EXISTS updated_docs")


def test_a_column_called_location_is_not_the_location_of_a_catalog_table(
    embed: Callable[..., Any], base: Job, spark: SparkSession
) -> None:
    docs = pa.table({"id": [1], "body": ["One."], "Location": ["Oslo"]})
    base["output"] = {"table": "located_docs"}
    try:
        assert embed(docs)["embedded"] == 1
        assert spark.table("located_docs").select("Location").collect() == [("Oslo",)]
    finally:
        spark.sql("DROP TABLE IF EXISTS located_docs")


def test_a_catalog_table_made_for_other_vectors_is_refused_before_its_first_rows_too(
    embed: Callable[..., Any], base: Job, spark: SparkSession
) -> None:
    base["output"] = {"table": "unfinished_docs"}
    try:
        assert embed({None: "no id"})["code"] == 3
        refused = embed(FIRST, "model.max_tokens=64")
        assert (refused["code"], refused["model_rows"]) == (5, 0)
        assert "if it has no rows, remove it" in refused["message"]
        spark.sql("DROP TABLE unfinished_docs")
        assert embed(FIRST, "model.max_tokens=64")["code"] == 0
    finally:
        spark.sql("DROP TABLE IF EXISTS unfinished_docs")


def test_an_empty_input_gives_an_empty_table_that_can_be_updated(
    embed: Callable[..., Any], tmp_path: Path
) -> None:
    assert embed({})["embedded"] == 0
    assert pq.read_table(tmp_path / "out").num_rows == 0
    assert embed({1: "a"})["embedded"] == 1
    assert [row["id"] for row in rows_of(tmp_path / "out")] == [1]


def test_an_empty_input_without_ids_gives_an_empty_table(
    embed: Callable[..., Any], base: Job, tmp_path: Path
) -> None:
    base["input"].pop("id")
    assert embed({})["embedded"] == 0
    assert pq.read_table(tmp_path / "out").num_rows == 0


def files(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
