"""Rows without a usable text, and texts that break an engine, keep their place and say why."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from e5spark.spark import embed
from tests.oracle import FP32_TOLERANCE, assert_close, reference, rows_of

LONG = ("A sentence that is repeated until nobody reads it. " * 100_000).encode()
CASES: dict[str, tuple[bytes | None, str]] = {
    "plain": (b"A plain text.", "ok"),
    "null": (None, "null_text"),
    "empty": (b"", "empty_text"),
    "white space": (" \t\r\n\u00a0\u3000\u2028".encode(), "empty_text"),
    "zero width": ("\u200b\u200c\u200d\u2060\ufeff".encode(), "empty_text"),
    "Latin-1 in place of UTF-8": (b"r\xe9sum\xe9", "ok"),
    "bytes that are never UTF-8": (b"\xff\xfe\xfd", "ok"),
    "cut off inside a character": ("половина".encode()[:-1], "ok"),
    "a lone surrogate": (b"half \xed\xa0\x80 a pair", "ok"),
    "a surrogate pair": (b"\xed\xa0\xbd\xed\xb8\x80", "ok"),
    "NUL": (b"one\x00two", "ok"),
    "5 MB": (LONG, "ok"),
    "the last": ("Последний текст.".encode(), "ok"),
}
NAMES = list(CASES)


@pytest.fixture(scope="module")
def bad_input(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Parquet file whose string column holds what no Python string can."""
    path = tmp_path_factory.mktemp("bad") / "texts.parquet"
    texts = pa.array([text for text, _ in CASES.values()], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"id": range(len(CASES)), "text": texts}), path)
    return str(path)


@pytest.mark.usefixtures("udf_kind")
def test_every_row_is_in_the_output_with_its_status(
    spark: SparkSession, bad_input: str, model: str
) -> None:
    rows = rows_of(embedded(spark, bad_input, model))
    assert [row["id"] for row in rows] == list(range(len(CASES)))
    assert {name: row["status"] for name, row in zip(NAMES, rows, strict=True)} == {
        name: status for name, (_, status) in CASES.items()
    }
    for name, row in zip(NAMES, rows, strict=True):
        usable = row["status"] == "ok"
        assert (row["embedding"] is not None) == usable, name
        assert (row["n_tokens"] > 0) == usable, name
        assert row["truncated"] == (name == "5 MB"), name
        assert row["error"] is None, name
    assert rows[NAMES.index("5 MB")]["n_tokens"] > 500_000  # an estimate


@pytest.mark.usefixtures("udf_kind")
def test_bytes_that_are_not_utf8_are_embedded_as_replacement_characters(
    spark: SparkSession, bad_input: str, model: str
) -> None:
    good = [name for name, (_, status) in CASES.items() if status == "ok"]
    # 512 tokens are left of the long text: its beginning is enough for the oracle.
    texts = tuple(CASES[name][0][:20_000].decode("utf-8", "replace") for name in good)
    rows = rows_of(embedded(spark, bad_input, model))
    actual = [rows[NAMES.index(name)]["embedding"] for name in good]
    expected = reference(model, texts, prompt="passage: ")
    assert_close(np.array(actual, np.float32), expected, FP32_TOLERANCE)


@pytest.mark.usefixtures("udf_kind")
def test_a_text_that_breaks_the_engine_costs_its_own_row_only(
    make_table: Callable[..., DataFrame],
    texts: tuple[str, ...],
    poisoned_model: str,
    poison: str,
    model: str,
) -> None:
    company = list(texts[:60])
    company[17] = f"harmless words, then {poison}"
    docs = make_table(company, partitions=1)
    rows = rows_of(embed(docs, text="text", role="query", model=poisoned_model))
    poisoned = rows.pop(17)
    assert poisoned["status"] == "error"
    assert poisoned["embedding"] is None
    assert "not finite" in poisoned["error"]
    assert {row["status"] for row in rows} == {"ok"}
    actual = np.array([row["embedding"] for row in rows], np.float32)
    expected = np.delete(reference(model, texts[:60], prompt="query: "), 17, axis=0)
    assert_close(actual, expected, FP32_TOLERANCE)


@pytest.mark.usefixtures("udf_kind")
def test_a_wrong_role_costs_its_own_row_only(
    make_table: Callable[..., DataFrame], texts: tuple[str, ...], model: str
) -> None:
    kinds = ["query", "passage", "document", None, "passage", "query"]
    some = texts[: len(kinds)]
    docs = with_column(make_table(some), "kind", kinds)
    rows = rows_of(embed(docs, text="text", role=F.col("kind"), model=model))
    assert [row["status"] for row in rows] == ["ok", "ok", "error", "error", "ok", "ok"]
    assert rows[2]["error"] == "Unknown role 'document'; use 'query' or 'passage'."
    assert rows[2]["embedding"] is None
    for position in (0, 1, 4, 5):
        expected = reference(model, some, prompt=f"{kinds[position]}: ")[position]
        actual = np.array(rows[position]["embedding"], np.float32)
        assert_close(actual, expected, FP32_TOLERANCE)


@pytest.mark.usefixtures("udf_kind")
def test_instructions_come_from_a_column_and_a_missing_one_costs_its_own_row_only(
    make_table: Callable[..., DataFrame], texts: tuple[str, ...], model: str
) -> None:
    tasks = ["Find the answer", "Find similar questions", None, "Find the answer"]
    some = texts[: len(tasks)]
    docs = with_column(make_table(some), "task", tasks)
    prompts = {"query": "Instruct: {task}\nQuery: ", "passage": ""}
    rows = rows_of(
        embed(
            docs,
            text="text",
            role="query",
            instruction=F.col("task"),
            model=model,
            prompts=prompts,
        )
    )
    assert [row["status"] for row in rows] == ["ok", "ok", "error", "ok"]
    assert "needs an instruction" in rows[2]["error"]
    for position in (0, 1, 3):
        prompt = f"Instruct: {tasks[position]}\nQuery: "
        expected = reference(model, some, prompt=prompt)[position]
        actual = np.array(rows[position]["embedding"], np.float32)
        assert_close(actual, expected, FP32_TOLERANCE)


def embedded(spark: SparkSession, path: str, model: str) -> DataFrame:
    docs = spark.read.parquet(path)
    return embed(docs, text="text", role="passage", model=model).drop("text")


def with_column(df: DataFrame, name: str, values: list[str | None]) -> DataFrame:
    """The table with one more column, by id."""
    return df.withColumn(name, F.array(*map(F.lit, values))[F.col("id").cast("int")])
