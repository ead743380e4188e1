"""``input.select``, ``input.where`` and ``input.schema``: the input as the job needs it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tables import Job, rows_of

DOCS = pa.table(
    {
        "number": pa.array(range(8), pa.int32()),
        "body": [f"text number {number}" for number in range(8)],
        "lang": ["en", "de"] * 4,
    }
)


@pytest.fixture
def write(tmp_path: Path) -> None:
    pq.write_table(DOCS, tmp_path / "docs.parquet")


@pytest.mark.usefixtures("write")
def test_expressions_rename_cast_and_compute_columns_of_the_rows_that_match(
    embed: Callable[..., dict[str, Any]], base: Job, tmp_path: Path
) -> None:
    base["input"] |= {
        "where": "lang = 'en'",  # a column that select leaves out
        "select": ["CAST(number AS BIGINT) AS id", "body", "length(body) AS size"],
    }
    assert (report := embed())["embedded"] == 4, report
    rows = sorted((row["id"], row["body"], row["size"]) for row in rows_of(tmp_path / "out"))
    assert rows == [(number, f"text number {number}", 13) for number in (0, 2, 4, 6)]
    assert pq.read_schema(next((tmp_path / "out").glob("*.parquet"))).field("id").type == "int64"
    # Without delete_missing, rows that no longer match stay.
    base["input"]["where"] = "number < 3"
    assert (embed()["embedded"], len(rows_of(tmp_path / "out"))) == (1, 5)
    assert embed("run.delete_missing=true")["deleted"] == 2


@pytest.mark.usefixtures("write")
@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"where": "lang == "}, 2, "The SQL of input.where is not valid: [PARSE_SYNTAX_ERROR]"),
        (
            {"where": "language = 'en'"},
            2,
            "The SQL of input.where is not valid: [UNRESOLVED_COLUMN",
        ),
        ({"where": "body"}, 2, "The SQL of input.where is not valid: "),
        (
            {"select": ["CAST(number AS"]},
            2,
            "The SQL of input.select is not valid: [PARSE_SYNTAX_ERROR]",
        ),
        (
            {"select": ["*", "nothing AS id"]},
            2,
            "The SQL of input.select is not valid: [UNRESOLVED_COLUMN",
        ),
        ({"select": ["*", "upper(body) AS BODY"]}, 2, "input.select gives the column 'body' more"),
        ({"select": ["number AS id"]}, 3, "The table has no column 'number'"),
        ({"schema": "id BIGINT"}, 2, "input.schema is for path with input.format"),
    ],
)
def test_a_wrong_query_is_named_before_the_model_runs(
    embed: Callable[..., dict[str, Any]],
    base: Job,
    changes: dict[str, Any],
    code: int,
    message: str,
) -> None:
    base["input"] |= {"id": "number", **changes}
    refused = embed()
    assert (refused["code"], refused["model_rows"]) == (code, 0), refused
    assert message in refused["message"]


def test_a_field_that_comes_and_goes_needs_no_other_job(
    embed: Callable[..., dict[str, Any]], base: Job, tmp_path: Path
) -> None:
    source = tmp_path / "docs.jsonl"
    base["input"] |= {
        "path": str(source),
        "format": "jsonl",
        "schema": "id BIGINT, body STRING, lang STRING",
    }

    def run(*records: dict[str, Any]) -> list[Any]:
        source.write_text("\n".join(map(json.dumps, records)), "utf-8")
        report = embed()
        assert "message" not in report, report
        return [report["embedded"], report["refreshed"], report["skipped"]]

    one, two = {"id": 1, "body": "One."}, {"id": 2, "body": "Two."}
    assert run(one, two) == [2, 0, 0]
    assert run({**one, "lang": "en"}, two) == [0, 1, 1]
    assert run(one, {**two, "other": 3}) == [0, 1, 1]
    assert {row["id"]: row["lang"] for row in rows_of(tmp_path / "out")} == {1: None, 2: None}


def test_a_schema_that_is_not_one_is_refused_and_so_is_a_record_of_another_type(
    embed: Callable[..., dict[str, Any]], base: Job, tmp_path: Path
) -> None:
    (tmp_path / "docs.jsonl").write_text('{"id": "one", "body": "One."}', "utf-8")
    base["input"] |= {"path": str(tmp_path / "docs.jsonl"), "format": "jsonl"}
    refused = embed("input.schema=id BIGINT body STRING")
    assert refused["code"] == 2
    assert "input.schema is not a list of columns and types" in refused["message"]
    refused = embed("input.schema=id BIGINT, body STRING")
    assert (refused["code"], refused["model_rows"]) == (3, 0)
    assert "has a malformed record" in refused["message"]
