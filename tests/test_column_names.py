"""A user's columns may have any name but a reserved one, also each word that e5spark uses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tables import Job, rows_of

WORDS = """
    already_prompted append change changes chunk col column columns commit content_hash copies count
    counts current data deferred delete deleted embedded embedding embedding_fp end error failed
    file file_name file_size found gone hash here highest hold input instruction key kind known left
    location lost_tokens lowest max min name new null_text number n_tokens ok order output part
    partition path position posexplode prompt query rank result role row rows rows_in size source
    stale start status sum t0 t1 table target text texts there tokens truncated type update value
    vector version window
""".split()  # noqa: SIM905
COLUMNS = ("id", *WORDS)


@pytest.fixture
def base(base: Job) -> Job:
    """The text in the column text, and e5_ before the columns that are added."""
    base["embed"] |= {"text": "text", "column_prefix": "e5_"}
    base["input"].pop("id")
    return base


def table(*numbers: int, changed: int = -1, left_out: str = "") -> pa.Table:
    """Rows whose columns, but the text, hold their name and the number of the row."""
    rows = [
        {
            **{name: f"{name} {number}" for name in COLUMNS if name != left_out},
            "text": "changed" if number == changed else f"text {number}",
        }
        for number in numbers
    ]
    return pa.Table.from_pylist(rows)


@pytest.mark.parametrize(
    "settings",
    [
        {"id": "count"},
        {"id": "hash", "on_duplicate": "first"},
        {"hash_id": True},
        {},
    ],
    ids=["id", "first", "hash_id", "no id"],
)
def test_a_column_may_have_the_name_of_anything_inside(
    embed: Callable[..., Any], base: Job, tmp_path: Path, settings: dict[str, Any]
) -> None:
    base["input"] |= settings
    left_out = "id" if "hash_id" in settings else ""
    first = table(*range(6), left_out=left_out)
    pq.write_table(pa.concat_tables([first, first.slice(0, 2)]), tmp_path / "docs.parquet")
    if settings == {"id": "count"}:
        pq.write_table(first, tmp_path / "docs.parquet")
    report = embed("model.long_text=split", "model.max_tokens=16", "model.overlap=2")
    assert report["code"] == 0, report["message"]
    assert report["duplicates"] == (2 if len(settings) > 1 or left_out else 0)
    if not settings:
        assert len(rows_of(tmp_path / "out")) == 8
        return
    check(first, tmp_path / "out")

    second = table(*range(2, 8), changed=3, left_out=left_out)
    pq.write_table(second, tmp_path / "docs.parquet")
    split = ("model.long_text=split", "model.max_tokens=16", "model.overlap=2")
    report = embed("run.delete_missing=true", *split)
    assert report["code"] == 0, report["message"]
    assert (report["embedded"], report["deleted"]) == (3, 3 if left_out else 2)
    check(second, tmp_path / "out")


def check(expected: pa.Table, out: Path) -> None:
    """The table has these rows, in these columns, each with a vector."""
    rows = sorted(rows_of(out), key=lambda row: row["name"])
    assert all(row["e5_status"] == "ok" for row in rows)
    kept = [{name: row[name] for name in expected.column_names} for row in rows]
    assert kept == expected.sort_by("name").to_pylist()


@pytest.mark.parametrize("name", ["__e5spark_kind", "__E5Spark", "_metadata"])
def test_a_reserved_name_is_refused_by_name_before_anything_is_created(
    embed: Callable[..., Any], base: Job, tmp_path: Path, name: str
) -> None:
    docs = pa.table({"id": [1], "text": ["a"], name: ["mine"]})
    pq.write_table(docs, tmp_path / "docs.parquet")
    refused = embed()
    assert (refused["code"], refused["error"]) == (3, "ColumnError")
    assert f"The table has a column {name!r}" in refused["message"]
    assert not (tmp_path / "out").exists()
    assert embed('input.columns=["id"]')["code"] == 0


def test_a_column_called_id_with_a_hash_id_is_refused_with_the_remedy(
    embed: Callable[..., Any], base: Job, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"ID": [1], "text": ["a"]}), tmp_path / "docs.parquet")
    refused = embed("input.hash_id=true")
    assert (refused["code"], refused["error"]) == (3, "ColumnError")
    assert "set input.id = 'ID' in place of input.hash_id" in refused["message"]
    assert "prefix" not in refused["message"]
    assert embed("input.id=ID")["code"] == 0
