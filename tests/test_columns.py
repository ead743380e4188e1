"""Several text columns in one pass: each its own vectors, or all joined into one text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession

from e5spark.errors import ColumnError, OptionError
from e5spark.spark import embed
from e5spark.spark.columns import check_free
from tests.frames import from_arrow
from tests.oracle import FP32_TOLERANCE, INVARIANCE_TOLERANCE, assert_close, reference, rows_of
from tests.trace import Trace

FIELDS = ["embedding", "n_tokens", "truncated", "already_prompted", "status", "error"]
COUNT = 60


@pytest.fixture(scope="module")
def articles(spark: SparkSession, texts: tuple[str, ...]) -> DataFrame:
    """A title and a body each; some are null, some blank."""
    titles: list[str | None] = [text[:40] for text in texts[:COUNT]]
    bodies: list[str | None] = list(texts[COUNT : 2 * COUNT])
    titles[3] = bodies[4] = titles[5] = bodies[5] = None
    titles[6] = bodies[7] = " "
    table = {"id": list(range(COUNT)), "title": titles, "body": bodies}
    return from_arrow(spark, pa.table(table)).repartition(2)


@pytest.mark.usefixtures("udf_kind")
@pytest.mark.parametrize("shape", ["bert_wordpiece", "xlmr_unigram"])
def test_each_column_has_the_vectors_of_a_run_of_its_own(
    articles: DataFrame, models: dict[str, str], shape: str
) -> None:
    together = embed(articles, text=["title", "body"], role="passage", model=models[shape])
    assert together.columns == [
        *("id", "title", "body"),
        *(f"title_{field}" for field in FIELDS),
        *(f"body_{field}" for field in FIELDS),
    ]
    rows = rows_of(together)
    for name in ("title", "body"):
        alone = rows_of(embed(articles, text=name, role="passage", model=models[shape]))
        for field in FIELDS[1:]:
            assert [row[f"{name}_{field}"] for row in rows] == [row[field] for row in alone]
        good = [number for number, row in enumerate(alone) if row["status"] == "ok"]
        assert len(good) == COUNT - 3
        assert_close(
            np.array([rows[number][f"{name}_embedding"] for number in good], np.float32),
            np.array([alone[number]["embedding"] for number in good], np.float32),
            INVARIANCE_TOLERANCE,
        )
        bad = set(range(COUNT)) - set(good)
        assert all(rows[number][f"{name}_embedding"] is None for number in bad)


def test_one_load_and_one_pass_serve_all_columns(
    articles: DataFrame, new_model: str, trace: Trace
) -> None:
    df = embed(articles.coalesce(1), text=["title", "body"], role="query", model=new_model)
    df.write.format("noop").mode("overwrite").save()
    loads = trace.events("load")
    assert len(loads) == len({load["pid"] for load in loads}) == 1
    assert trace.rows() == 2 * (COUNT - 3)


def test_names_have_the_prefix_of_the_user_and_of_the_column(
    articles: DataFrame, model: str
) -> None:
    df = embed(articles, text=["title", "body"], role="query", model=model, column_prefix="e5_")
    assert df.columns[3] == "e5_title_embedding"
    assert df.columns[-1] == "e5_body_error"


@pytest.mark.parametrize("join", [None, "\n"])
def test_a_list_of_one_column_is_that_column(
    articles: DataFrame, model: str, join: str | None
) -> None:
    df = embed(articles, text=["title"], join=join, role="query", model=model)
    assert df.columns[3:] == FIELDS
    alone = embed(articles, text="title", role="query", model=model)
    assert rows_of(df) == rows_of(alone)


@pytest.mark.usefixtures("udf_kind")
@pytest.mark.parametrize("separator", ["\n", " - ", ""])
def test_joined_columns_are_one_text_and_nulls_are_left_out(
    articles: DataFrame, model: str, separator: str
) -> None:
    rows = rows_of(
        embed(articles, text=["title", "body"], join=separator, role="passage", model=model)
    )
    parts = [[row[name] for name in ("title", "body") if row[name] is not None] for row in rows]
    whole = [separator.join(texts) if texts else None for texts in parts]
    assert [row["status"] for row in rows] == ["null_text" if t is None else "ok" for t in whole]
    assert [row["id"] for row in rows if row["status"] == "null_text"] == [5]
    good = [number for number, text in enumerate(whole) if text is not None]
    expected = reference(model, tuple(whole[number] or "" for number in good), prompt="passage: ")
    actual = np.array([rows[number]["embedding"] for number in good], np.float32)
    assert_close(actual, expected, FP32_TOLERANCE)


def test_joined_blanks_are_an_empty_text(spark: SparkSession, model: str) -> None:
    docs = spark.createDataFrame([(0, " ", None), (1, "", "\t")], "id int, a string, b string")
    rows = rows_of(embed(docs, text=["a", "b"], join="\n", role="query", model=model))
    assert [row["status"] for row in rows] == ["empty_text"] * 2


def test_the_order_of_the_columns_is_the_order_of_the_text(articles: DataFrame, model: str) -> None:
    forward, backward = (
        rows_of(embed(articles, text=names, join=" ", role="query", model=model))[0]["embedding"]
        for names in (["title", "body"], ["body", "title"])
    )
    assert np.abs(np.array(forward) - np.array(backward)).max() > 100 * FP32_TOLERANCE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (["title", "boddy"], "The table has no column 'boddy'. Did you mean 'body'"),
        (["title", "id"], "Column 'id' is bigint"),
        (["title", "title"], "twice"),
        (["title", "TITLE"], "twice"),
    ],
)
def test_wrong_columns_are_refused_before_an_action(
    articles: DataFrame, model: str, text: list[str], message: str
) -> None:
    with pytest.raises(ColumnError, match=message):
        embed(articles, text=text, role="query", model=model)


def test_no_columns_are_refused(articles: DataFrame, model: str) -> None:
    with pytest.raises(OptionError, match="text names no column"):
        embed(articles, text=[], role="query", model=model)


def test_a_column_name_that_exists_is_refused_with_the_callers_remedy(articles: DataFrame) -> None:
    with pytest.raises(ColumnError, match="column 'id', and e5spark adds 'ID'; unset hash_id"):
        check_free(articles, ["ID"], remedy="unset hash_id")
    check_free(articles, ["id_"])


def test_a_job_embeds_several_columns_and_counts_all_their_texts(
    articles: DataFrame, model: str, run_job: Callable[..., Any], tmp_path: Path
) -> None:
    articles.write.parquet(str(tmp_path / "in"))
    outcome = run_job(
        input={"path": str(tmp_path / "in")},
        embed={"text": ["title", "body"], "role": "passage"},
        model={"name": model},
        output={"path": str(tmp_path / "out")},
    )
    assert outcome.code == 0
    counts = [outcome.document[name] for name in ("rows", "ok", "null_text", "empty_text", "error")]
    assert counts == [COUNT, 2 * (COUNT - 3), 4, 2, 0]
    table = pq.read_table(tmp_path / "out")
    assert {"title_embedding", "body_embedding"} <= set(table.column_names)
    rows = table.sort_by("id").to_pylist()
    expected = reference(model, tuple(row["body"] for row in rows[8:]), prompt="passage: ")
    actual = np.array([row["body_embedding"] for row in rows[8:]], np.float32)
    assert_close(actual, expected, FP32_TOLERANCE)


def test_a_job_joins_columns(
    articles: DataFrame, model: str, run_job: Callable[..., Any], tmp_path: Path
) -> None:
    articles.write.parquet(str(tmp_path / "in"))
    outcome = run_job(
        input={"path": str(tmp_path / "in")},
        embed={"text": ["title", "body"], "join": ". ", "role": "passage"},
        model={"name": model},
        output={"path": str(tmp_path / "out")},
    )
    assert outcome.code == 0
    assert [outcome.document[name] for name in ("ok", "null_text")] == [COUNT - 1, 1]
    rows = pq.read_table(tmp_path / "out").sort_by("id").to_pylist()
    texts = tuple(f"{row['title']}. {row['body']}" for row in rows[8:])
    actual = np.array([row["embedding"] for row in rows[8:]], np.float32)
    assert_close(actual, reference(model, texts, prompt="passage: "), FP32_TOLERANCE)
