"""The job, in this process: formats in and out, the columns, and the counts of all rows."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pyspark
import pytest
from pyspark.sql import SparkSession

from e5spark import __version__
from tests.frames import to_arrow
from tests.oracle import FP32_TOLERANCE, assert_close, reference
from tests.tables import Job
from tests.trace import Trace

DOCS: list[dict[str, Any]] = [
    {"id": "a", "kind": "passage", "body": "Heavy rain is expected over the northern hills."},
    {"id": "b", "kind": "query", "body": 'A "quoted", word\nand a second line,\n\nand a fourth.'},
    {"id": "c", "kind": "passage", "body": None},
    {"id": "d", "kind": "query", "body": "  "},
    {"id": "e", "kind": "passage", "body": "Где находится библиотека? 图书馆"},
    {"id": "f", "kind": "query", "body": " ".join(["word"] * 700)},
]
OK = [doc for doc in DOCS if doc["body"] and doc["body"].strip()]
ADDED = ["embedding", "n_tokens", "truncated", "already_prompted", "status", "error"]
ADDED += ["content_hash", "embedding_fp"]


@pytest.fixture
def docs(tmp_path: Path) -> str:
    """DOCS as a Parquet file."""
    path = tmp_path / "docs.parquet"
    pq.write_table(pa.Table.from_pylist(DOCS), path)
    return str(path)


@pytest.fixture
def base(base: Job, docs: str) -> Job:
    """Without ids: `docs` to tmp_path/out."""
    return {**base, "input": {"path": docs}}


def write_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(DOCS), path)


def write_csv(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["id", "kind", "body"])
        writer.writeheader()
        writer.writerows(DOCS)


def write_jsonl(path: Path) -> None:
    path.write_text("".join(f"{json.dumps(doc)}\n" for doc in DOCS), "utf-8")


@pytest.mark.parametrize(
    ("form", "write"), [("parquet", write_parquet), ("csv", write_csv), ("jsonl", write_jsonl)]
)
def test_a_file_of_each_format_becomes_a_table_with_vectors(
    run_job: Callable[..., Any],
    base: Job,
    tmp_path: Path,
    model: str,
    form: str,
    write: Callable[[Path], None],
) -> None:
    write(tmp_path / f"docs.{form}")
    base["input"] = {"path": str(tmp_path / f"docs.{form}"), "format": form}
    outcome = run_job(**base)
    assert outcome.code == 0
    check_counts(outcome.document)
    check_rows(read_rows(base["output"]["path"]), model)


def test_a_text_file_has_one_text_on_each_line(
    run_job: Callable[..., Any], base: Job, tmp_path: Path, model: str
) -> None:
    lines = ("First line.", "", "Третья строка.")
    (tmp_path / "docs.txt").write_text("\n".join(lines), "utf-8")
    base["input"] = {"path": str(tmp_path / "docs.txt"), "format": "text"}
    base["embed"]["text"] = "value"
    outcome = run_job(**base)
    assert (outcome.document["ok"], outcome.document["empty_text"]) == (2, 1)
    rows = {row["value"]: row for row in read_rows(base["output"]["path"])}
    assert set(rows) == set(lines)
    check_vectors(rows[lines[0]], lines[0], "passage: ", model)
    check_vectors(rows[lines[2]], lines[2], "passage: ", model)


def test_a_catalog_table_becomes_a_catalog_table(
    run_job: Callable[..., Any],
    spark: SparkSession,
    base: Job,
    docs: str,
    model: str,
) -> None:
    base["input"] = {"table": "docs_in"}
    base["output"] = {"table": "docs_out"}
    try:
        spark.read.parquet(docs).write.saveAsTable("docs_in")
        outcome = run_job(**base)
        assert outcome.code == 0
        assert outcome.document["output"] == "docs_out"
        check_counts(outcome.document)
        check_rows(to_arrow(spark.table("docs_out")).to_pylist(), model)
        before = spark.table("docs_out").collect()
        again = run_job(**base)
        assert again.code == 5
        assert "The output docs_out already exists" in again.document["message"]
        assert spark.table("docs_out").collect() == before
    finally:
        spark.sql("DROP TABLE IF EXISTS docs_in")
        spark.sql("DROP TABLE IF EXISTS docs_out")


def test_the_document_says_what_ran(
    run_job: Callable[..., Any], base: Job, trace: Trace, model: str
) -> None:
    document = run_job(**base).document
    check_counts(document)
    assert trace.rows() == len(OK)
    assert document["tokens"] == sum(row["n_tokens"] for row in read_rows(document["output"]))
    assert document["model"] == model
    assert document["dim"] == 32
    assert document["versions"]["e5spark"] == __version__
    assert document["versions"]["spark"] == document["versions"]["pyspark"] == pyspark.__version__
    assert document["texts_per_second"] > 0
    assert document["tokens_per_second"] > document["texts_per_second"]
    assert len(document["fingerprint"]) == 64


def test_the_fingerprint_tells_vectors_apart_and_nothing_else(
    run_job: Callable[..., Any], base: Job, tmp_path: Path
) -> None:
    def fingerprint(number: int, *overrides: str) -> str:
        out = f'output.path="{tmp_path / str(number)}"'
        return run_job(out, *overrides, **base).document["fingerprint"]

    first = fingerprint(0)
    assert fingerprint(1, "model.sort_window=3", "run.partitions=3", "embed.role=query") == first
    assert fingerprint(2, "model.max_tokens=64") != first


def test_columns_and_column_prefix_choose_the_columns_of_the_output(
    run_job: Callable[..., Any], base: Job
) -> None:
    base["input"]["columns"] = ["id"]
    base["embed"]["column_prefix"] = "e5_"
    outcome = run_job(**base)
    check_counts(outcome.document)
    schema = pq.read_schema(next(Path(base["output"]["path"]).glob("*.parquet")))
    assert schema.names == ["id", *(f"e5_{name}" for name in ADDED)]


def test_roles_come_from_a_column(run_job: Callable[..., Any], base: Job, model: str) -> None:
    base["embed"] = {"text": "body", "role_column": "KIND"}
    outcome = run_job(**base)
    check_counts(outcome.document)
    rows = {row["id"]: row for row in read_rows(base["output"]["path"])}
    for doc in OK:
        check_vectors(rows[doc["id"]], doc["body"], f"{doc['kind']}: ", model)


def test_partitions_spread_the_rows(run_job: Callable[..., Any], base: Job) -> None:
    check_counts(run_job("run.partitions=3", **base).document)
    assert len(list(Path(base["output"]["path"]).glob("part-*"))) == 3


def test_reader_and_writer_options_are_passed_on(
    run_job: Callable[..., Any], base: Job, tmp_path: Path
) -> None:
    (tmp_path / "docs.csv").write_text("a;One text.\nb;Another one.\n")
    base["input"] = {"path": str(tmp_path / "docs.csv"), "format": "csv"}
    base["input.options"] = {"header": False, "sep": ";"}
    base["embed"]["text"] = "_c1"
    base["output.options"] = {"compression": "gzip"}
    assert run_job(**base).document["ok"] == 2
    (file,) = Path(base["output"]["path"]).glob("*.parquet")
    assert pq.ParquetFile(file).metadata.row_group(0).column(0).compression == "GZIP"


def test_error_rows_fail_the_job_after_all_rows_are_written(
    run_job: Callable[..., Any],
    base: Job,
    docs: str,
    poisoned_model: str,
    poison: str,
    model: str,
) -> None:
    poisoned = {"id": "g", "kind": "query", "body": f"a {poison} b"}
    pq.write_table(pa.Table.from_pylist([*DOCS, poisoned]), docs)
    outcome = run_job(f"model.name={json.dumps(poisoned_model)}", **base)
    assert outcome.code == 4
    assert outcome.document["exit_code"] == 4
    assert outcome.document["error"] == "GateError"
    assert "1 of 7 texts could not be embedded" in outcome.document["message"]
    rows = read_rows(base["output"]["path"])
    (bad,) = (row for row in rows if row["id"] == "g")
    assert bad["status"] == "error"
    assert "not finite" in bad["error"]
    check_rows([row for row in rows if row["id"] != "g"], model)


def test_max_error_rate_lets_error_rows_pass(
    run_job: Callable[..., Any],
    base: Job,
    docs: str,
    poisoned_model: str,
    poison: str,
) -> None:
    pq.write_table(pa.Table.from_pylist([{"body": poison}, {"body": "fine"}]), docs)
    overrides = [f"model.name={json.dumps(poisoned_model)}", "run.max_error_rate=1"]
    outcome = run_job(*overrides, **base)
    assert outcome.code == 0
    assert (outcome.document["ok"], outcome.document["error"]) == (1, 1)


def test_an_error_that_is_tried_again_is_a_share_of_the_whole_input(
    run_job: Callable[..., Any], base: Job, docs: str, poisoned_model: str, poison: str
) -> None:
    bodies = [poison, *(f"fine {number}" for number in range(9))]
    rows = [{"id": number, "body": body} for number, body in enumerate(bodies)]
    pq.write_table(pa.Table.from_pylist(rows), docs)
    base["input"]["id"] = "id"
    rate = ["run.max_error_rate=0.1"]
    for embedded in (10, 1):
        outcome = run_job(f"model.name={json.dumps(poisoned_model)}", *rate, **base)
        assert (outcome.code, outcome.document["embedded"], outcome.document["error"]) == (
            0,
            embedded,
            1,
        )
    rows[0]["body"] = "mended"
    rows[1]["body"] = f"{poison} {poison}"
    rows[2]["body"] = f"{poison} and so on"
    pq.write_table(pa.Table.from_pylist(rows), docs)
    outcome = run_job(f"model.name={json.dumps(poisoned_model)}", *rate, **base)
    assert outcome.code == 4
    assert "2 of 10 texts could not be embedded" in outcome.document["message"]


def test_parquet_is_compressed_with_zstd_and_vectors_have_no_dictionary(
    run_job: Callable[..., Any], base: Job, docs: str
) -> None:
    # Equal vectors, for which Parquet would choose a dictionary.
    pq.write_table(pa.Table.from_pylist([DOCS[0]] * 200), docs)
    run_job(**base)
    (file,) = Path(base["output"]["path"]).glob("*.parquet")
    group = pq.ParquetFile(file).metadata.row_group(0)
    leaves = [group.column(index) for index in range(group.num_columns)]
    columns = {leaf.path_in_schema: leaf for leaf in leaves}
    assert {leaf.compression for leaf in leaves} == {"ZSTD"}
    assert columns["body"].has_dictionary_page
    assert not columns["embedding.list.element"].has_dictionary_page
    encodings = columns["embedding.list.element"].encodings
    assert not [encoding for encoding in encodings if "DICTIONARY" in encoding]


def test_parquet_reads_the_same_everywhere(
    run_job: Callable[..., Any], base: Job, model: str
) -> None:
    run_job("run.partitions=1", **base)
    table = pq.read_table(base["output"]["path"])
    assert table.schema.field("embedding").type == pa.list_(
        pa.field("element", pa.float32(), False)
    )
    assert table["embedding"].combine_chunks().flatten().null_count == 0
    by_arrow = table.to_pylist()
    check_rows(by_arrow, model)
    by_pandas = pd.read_parquet(base["output"]["path"])
    by_duckdb = duckdb.sql(f"FROM '{base['output']['path']}/*.parquet'").fetchall()
    for number, row in enumerate(by_arrow):
        expected = row["embedding"]
        for vector in (by_pandas["embedding"][number], by_duckdb[number][3]):
            assert (vector is None) == (expected is None)
            if expected is not None:
                np.testing.assert_array_equal(np.asarray(vector), np.asarray(expected))


def read_rows(path: str) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def check_counts(document: Mapping[str, Any]) -> None:
    counts = {
        "rows_in": 6,
        "rows": 6,
        "ok": 4,
        "null_text": 1,
        "empty_text": 1,
        "error": 0,
        "truncated": 1,
    }
    assert document["status"] == "done"
    assert {name: document[name] for name in counts} == counts


def check_rows(rows: Sequence[Mapping[str, Any]], model: str) -> None:
    """All of DOCS with what embed must say of each."""
    by_id = {row["id"]: row for row in rows}
    assert len(by_id) == len(rows) == len(DOCS)
    for doc in DOCS:
        assert by_id[doc["id"]]["body"] == doc["body"]
        assert by_id[doc["id"]]["kind"] == doc["kind"]
    statuses = {key: row["status"] for key, row in by_id.items()}
    assert statuses == dict.fromkeys("abef", "ok") | {"c": "null_text", "d": "empty_text"}
    assert [key for key, row in by_id.items() if row["truncated"]] == ["f"]
    for doc in OK:
        check_vectors(by_id[doc["id"]], doc["body"], "passage: ", model)


def check_vectors(row: Mapping[str, Any], text: str, prompt: str, model: str) -> None:
    vector = np.array(row["embedding"], np.float32)
    assert_close(vector, reference(model, (text,), prompt=prompt)[0], FP32_TOLERANCE)
