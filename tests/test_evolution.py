"""An input whose columns that pass through change: the table follows, or the run is refused."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql import SparkSession
from pyspark.sql.types import (
    ArrayType,
    ByteType,
    DataType,
    DateType,
    DecimalType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    ShortType,
    StringType,
    StructField,
    StructType,
    TimestampType,
)

from e5spark.errors import ConflictError
from e5spark.job.config import SchemaMode
from e5spark.job.evolution import evolved
from e5spark.job.source import Source
from e5spark.tables.sinks.commit import Commits
from tests.cluster import REPOSITORY
from tests.tables import Job, rows_of, table_of
from tests.test_ledger import PROCESS

TEXTS = {number: f"text number {number}" for number in range(30)}
COUNTS = ("code", "refreshed", "embedded", "skipped", "model_rows")
RESULTS = {"embedding": "array<float>", "status": "string"}
TYPES: dict[str, DataType] = {
    type_.simpleString(): type_
    for type_ in (
        ByteType(),
        ShortType(),
        IntegerType(),
        LongType(),
        FloatType(),
        DoubleType(),
        StringType(),
        DateType(),
        TimestampType(),
    )
}


def docs(texts: dict[int, str] = TEXTS, **columns: pa.Array) -> pa.Table:
    """The columns id and body, and others."""
    table = table_of(texts)
    for name, values in columns.items():
        table = table.append_column(name, values)
    return table


def titles(word: str = "title", texts: dict[int, str] = TEXTS) -> pa.Array:
    return pa.array([f"{word} {number}" for number in texts])


def numbers(type_: pa.DataType, factor: int = 1, texts: dict[int, str] = TEXTS) -> pa.Array:
    return pa.array([number * factor for number in texts], type_)


@pytest.fixture
def base(base: Job) -> Job:
    """In chunks of 10 rows."""
    base["run"] = {"chunk_rows": 10}
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


def by_id(out: Path) -> dict[int, dict[str, Any]]:
    rows = rows_of(out)
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


def test_a_gained_column_is_in_every_file_and_filled_without_the_model(
    run: Callable[..., list[Any]], tmp_path: Path
) -> None:
    run(docs(title=titles()))
    before = by_id(tmp_path / "out")
    gained = docs(title=titles(), likes=numbers(pa.int32()))
    assert run(gained) == [0, 30, 0, 0, 0]
    after = by_id(tmp_path / "out")
    assert after == {id: {**row, "likes": id} for id, row in before.items()}
    files = list((tmp_path / "out").glob("*.parquet"))
    assert all("likes" in pq.read_schema(file).names for file in files)
    metadata = {pq.read_schema(file).field("embedding").metadata is None for file in files}
    assert metadata == {pq.read_schema(files[0]).field("embedding").metadata is None}
    assert run(gained) == [0, 0, 0, 30, 0]


def test_lost_renamed_and_wider_columns_are_followed_together(
    run: Callable[..., list[Any]], tmp_path: Path
) -> None:
    run(docs(title=titles(), likes=numbers(pa.int32()), lang=titles("lang")))
    before = by_id(tmp_path / "out")
    texts = {**TEXTS, 3: "changed", 40: "new"}
    big = 1 << 40
    current = docs(
        texts, heading=titles("head", texts), likes=numbers(pa.int64(), big, texts)
    ).select(["likes", "id", "heading", "body"])  # the order does not matter
    assert run(current) == [0, 29, 2, 0, 2]
    after = by_id(tmp_path / "out")
    for id, row in before.items():
        if id != 3:
            assert after[id] == {**row, "likes": id * big, "heading": f"head {id}"}
    for id in (3, 40):
        columns = [after[id][name] for name in ("likes", "heading", "title", "lang")]
        assert columns == [id * big, f"head {id}", None, None]
    # A narrower type than the table's is no change.
    narrow = docs(texts, heading=titles("head", texts), likes=numbers(pa.int16(), 1, texts))
    assert run(narrow) == [0, 30, 0, 1, 0]
    assert run(narrow) == [0, 0, 0, 31, 0]


def test_without_refresh_a_gained_column_is_null_in_the_rows_of_before(
    run: Callable[..., list[Any]], tmp_path: Path
) -> None:
    run(docs())
    texts = {**TEXTS, 40: "new"}
    gained = docs(texts, title=titles(texts=texts))
    assert run(gained, "run.refresh_columns=false") == [0, 0, 1, 30, 1]
    rows = by_id(tmp_path / "out")
    assert {id: row["title"] for id, row in rows.items() if row["title"]} == {40: "title 40"}


def test_a_column_in_other_letters_is_the_same_column(
    run: Callable[..., list[Any]], tmp_path: Path
) -> None:
    run(docs(title=titles()))
    assert run(docs(Title=titles())) == [0, 0, 0, 30, 0]
    assert run(docs(Title=titles("another"))) == [0, 30, 0, 0, 0]
    assert by_id(tmp_path / "out")[7]["title"] == "another 7"


@pytest.mark.chaos
@pytest.mark.parametrize("at", ["rewritten", "replacing", "publishing", "removing", "removing:2"])
def test_a_change_of_columns_killed_at_any_instant_is_finished_by_the_same_command(
    run: Callable[..., list[Any]],
    base: Job,
    job_file: Callable[..., str],
    tmp_path: Path,
    at: str,
) -> None:
    run(docs(likes=numbers(pa.int32())))
    before = by_id(tmp_path / "out")
    current = docs(likes=numbers(pa.int64()), title=titles())
    pq.write_table(current, tmp_path / "docs.parquet")
    killed = subprocess.run(
        [sys.executable, "-m", "e5spark", "embed", job_file(**base, spark=PROCESS)],
        cwd=REPOSITORY,
        env={**os.environ, "E5SPARK_FAILPOINT": at},
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert run(current) == [0, 30, 0, 0, 0]
    after = by_id(tmp_path / "out")
    assert after == {id: {**row, "title": f"title {id}"} for id, row in before.items()}


def test_a_catalog_table_gains_columns_and_refuses_wider_types_by_name(
    run: Callable[..., list[Any]],
    embed: Callable[..., dict[str, Any]],
    base: Job,
    spark: SparkSession,
    tmp_path: Path,
) -> None:
    base["output"] = {"table": "evolving_docs"}
    try:
        run(docs(likes=numbers(pa.int32())))
        assert run(docs(likes=numbers(pa.int32()), title=titles())) == [0, 30, 0, 0, 0]
        row = spark.table("evolving_docs").where("id = 7").first()
        assert row is not None
        assert (row["title"], row["likes"]) == ("title 7", 7)
        pq.write_table(docs(likes=numbers(pa.int64())), tmp_path / "docs.parquet")
        refused = embed()
        assert (refused["code"], refused["model_rows"]) == (5, 0)
        assert "wider types in its columns 'likes'" in refused["message"]
        assert spark.table("evolving_docs").count() == 30
    finally:
        spark.sql("DROP TABLE IF EXISTS evolving_docs")


def type_of(name: str) -> DataType:
    """A type by its name in SQL, without a session to parse it."""
    if name.startswith("decimal"):
        precision, scale = map(int, name[len("decimal(") : -1].split(","))
        return DecimalType(precision, scale)
    if name.startswith("array"):
        return ArrayType(type_of(name[len("array<") : -1]))
    if name.startswith("struct"):
        fields = [part.split(":") for part in name[len("struct<") : -1].split(",")]
        return StructType([StructField(field, type_of(kind)) for field, kind in fields])
    return TYPES[name]


def change(
    before: dict[str, str], after: dict[str, str], mode: SchemaMode = "evolve"
) -> dict[str, str]:
    """The columns of a table whose input has changed; its texts are in ``body``."""
    stored = StructType()
    for name, type_ in {**before, **RESULTS}.items():
        stored.add(name, type_of(type_))
    current = StructType()
    for name, type_ in after.items():
        current.add(name, type_of(type_))
    kept = tuple(name for name in after if name not in ("id", "body", "text"))
    source = SimpleNamespace(
        rows=SimpleNamespace(schema=current), columns=tuple(after), kept=kept, id="id"
    )
    commits = SimpleNamespace(schema=stored, target=SimpleNamespace(name="out"))
    fields = evolved(
        cast(Commits, commits), cast(Source, source), stored.fields[len(before) :], mode=mode
    )
    return {field.name: field.dataType.simpleString() for field in fields}


BASE = {"id": "bigint", "body": "string"}


@pytest.mark.parametrize(
    ("before", "after", "wider"),
    [
        ("int", "bigint", "bigint"),
        ("bigint", "smallint", "bigint"),
        ("tinyint", "smallint", "smallint"),
        ("int", "double", "double"),
        ("float", "double", "double"),
        ("decimal(10,2)", "decimal(12,4)", "decimal(12,4)"),
        ("decimal(10,2)", "decimal(10,4)", "decimal(12,4)"),
        ("array<int>", "array<int>", "array<int>"),
    ],
)
def test_types_that_differ_become_the_wider_of_both(before: str, after: str, wider: str) -> None:
    assert change({**BASE, "x": before}, {**BASE, "x": after}) == {**BASE, "x": wider}
    assert change({**BASE, "x": after}, {**BASE, "x": before}) == {**BASE, "x": wider}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("bigint", "double"),  # 2^53 + 1 has no double
        ("int", "float"),
        ("int", "string"),
        ("decimal(38,0)", "decimal(38,2)"),
        ("date", "timestamp"),
        ("array<int>", "array<bigint>"),
        ("struct<a:int>", "struct<a:int,b:int>"),
    ],
)
def test_types_that_no_type_holds_are_refused_by_name(before: str, after: str) -> None:
    message = f"'x' is {before} in the output and {after} in the input"
    with pytest.raises(ConflictError) as refused:
        change({**BASE, "x": before, "y": "int"}, {**BASE, "x": after, "y": "int"})
    assert message in str(refused.value)
    assert "'y'" not in str(refused.value)
    assert "nothing was changed" in str(refused.value)


def test_columns_stay_in_the_order_of_the_table_and_gained_columns_follow() -> None:
    after = {"new": "string", "y": "int", "body": "string", "id": "bigint"}
    columns = change({**BASE, "x": "int", "y": "int"}, after)
    assert list(columns) == ["id", "body", "x", "y", "new"]


def test_a_text_in_a_new_column_is_refused_because_its_rows_would_not_be_refreshed() -> None:
    with pytest.raises(ConflictError, match="the output has no 'text'"):
        change(BASE, {"id": "bigint", "text": "string"})


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ({**BASE}, "the input has no 'x'"),
        ({**BASE, "x": "bigint"}, "'x' is int in the output and bigint in the input"),
        ({**BASE, "x": "int", "y": "int"}, "the output has no 'y' \\(int\\)"),
    ],
)
def test_refuse_names_every_change(after: dict[str, str], message: str) -> None:
    with pytest.raises(ConflictError, match=message):
        change({**BASE, "x": "int"}, after, "refuse")
    assert change({**BASE, "x": "int"}, {"x": "int", **BASE}, "refuse") == {**BASE, "x": "int"}


DECIMALS = st.tuples(st.integers(1, 38), st.integers(0, 38))


@given(st.tuples(DECIMALS, DECIMALS))
def test_a_decimal_that_holds_both_has_room_for_all_digits(
    sizes: tuple[tuple[int, int], tuple[int, int]],
) -> None:
    first, second = (DecimalType(max(precision, scale), scale) for precision, scale in sizes)
    types = [type_.simpleString() for type_ in (first, second)]
    whole = max(first.precision - first.scale, second.precision - second.scale)
    scale = max(first.scale, second.scale)
    if whole + scale > 38:
        with pytest.raises(ConflictError):
            change({**BASE, "x": types[0]}, {**BASE, "x": types[1]})
    else:
        columns = change({**BASE, "x": types[0]}, {**BASE, "x": types[1]})
        assert columns["x"] == f"decimal({whole + scale},{scale})"
