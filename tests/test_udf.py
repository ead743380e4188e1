"""embedding_udf: the vector alone, as a column."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.errors import PythonException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from e5spark.errors import ColumnError, OptionError, from_text
from e5spark.spark import embed, embedding_udf
from tests.frames import to_arrow
from tests.oracle import FP32_TOLERANCE, assert_close, reference, vectors_of
from tests.trace import Trace

VECTOR = "array<float>"


@pytest.fixture
def register(spark: SparkSession) -> Callable[[Callable[..., Column]], str]:
    def register(udf: Callable[..., Column]) -> str:
        spark.udf.register("e5", udf)
        return "e5"

    return register


@pytest.mark.usefixtures("udf_kind")
def test_the_udf_gives_the_vectors_of_transformers_in_select_with_column_and_sql(
    make_table: Callable[..., DataFrame],
    texts: tuple[str, ...],
    model: str,
    register: Callable[[Callable[..., Column]], str],
) -> None:
    docs = make_table(texts[:100])
    passages = embedding_udf(role="passage", model=model)
    name = register(passages)
    results = (
        docs.select("id", passages("text").alias("embedding")),
        docs.withColumn("embedding", passages(F.col("text"))),
        docs.selectExpr("id", f"{name}(text) AS embedding"),
    )
    expected = reference(model, texts[:100], prompt="passage: ")
    for result in results:
        assert result.schema["embedding"].dataType.simpleString() == VECTOR
        assert_close(vectors_of(result), expected, FP32_TOLERANCE)


@pytest.mark.usefixtures("udf_kind")
def test_the_udf_gives_null_where_there_is_no_text(
    make_table: Callable[..., DataFrame], model: str
) -> None:
    docs = make_table(["a text", None, "", " \n"], partitions=1)
    column = embedding_udf(role="query", model=model)("text")
    rows = docs.select("id", column.alias("embedding")).sort("id").collect()
    assert [row.embedding is None for row in rows] == [False, True, True, True]


@pytest.mark.usefixtures("udf_kind")
def test_a_filter_on_the_vector_runs_the_model_once_for_each_row(
    make_table: Callable[..., DataFrame], texts: tuple[str, ...], model: str, trace: Trace
) -> None:
    column = embedding_udf(role="query", model=model)("text")
    vectors = make_table(texts[:50]).withColumn("embedding", column)
    result = vectors.filter("embedding IS NOT NULL").filter("embedding[0] < 2")
    assert len(to_arrow(result.select("embedding"))) == 50
    assert trace.rows() == 50


def test_the_udf_takes_strings_that_are_not_utf8(
    spark: SparkSession, tmp_path: Path, model: str, udf_kind: str
) -> None:
    texts = (b"r\xe9sum\xe9", b"half \xed\xa0\x80 a pair", b"plain")
    column = pa.array(texts, pa.binary()).view(pa.string())
    pq.write_table(pa.table({"id": range(3), "text": column}), tmp_path / "texts.parquet")
    docs = spark.read.parquet(str(tmp_path))
    # Spark decodes the strings that a pandas UDF takes, but not binary.
    text = F.col("text") if udf_kind == "arrow" else F.col("text").cast("binary")
    vector = embedding_udf(role="query", model=model)(text)
    expected = reference(
        model, tuple(text.decode("utf-8", "replace") for text in texts), prompt="query: "
    )
    actual = vectors_of(docs.select("id", vector.alias("embedding")))
    assert_close(actual, expected, FP32_TOLERANCE)


def test_the_udf_takes_the_options_of_embed(
    make_table: Callable[..., DataFrame], texts: tuple[str, ...], model: str
) -> None:
    docs = make_table(texts[:30])
    options = {"pooling": "cls", "normalize": False, "max_tokens": 16}
    column = embedding_udf(role="query", model=model, **options)("text")
    actual = vectors_of(docs.select("id", column.alias("embedding")))
    same = vectors_of(embed(docs, text="text", role="query", model=model, **options))
    plain = vectors_of(embed(docs, text="text", role="query", model=model))
    np.testing.assert_array_equal(actual, same)
    assert np.abs(actual - plain).max() > 0.1


@pytest.mark.usefixtures("udf_kind")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("e5(1)", r"with a column of type int(32|64); it takes strings. Cast the column first"),
        ("e5(array('a'))", r"with a column of type list<"),
        ("e5('a', 'b')", r"with 2 arguments; it takes 1"),
    ],
)
def test_sql_that_calls_the_udf_with_anything_but_one_string_says_what_it_takes(
    spark: SparkSession,
    model: str,
    register: Callable[[Callable[..., Column]], str],
    call: str,
    message: str,
) -> None:
    register(embedding_udf(role="query", model=model))
    with pytest.raises(PythonException) as caught:
        spark.sql(f"SELECT {call}").collect()
    error = from_text(str(caught.value))
    assert isinstance(error, ColumnError)
    assert re.search(message, str(error))


@pytest.mark.usefixtures("udf_kind")
def test_sql_null_is_no_text(
    spark: SparkSession, model: str, register: Callable[[Callable[..., Column]], str]
) -> None:
    register(embedding_udf(role="query", model=model))
    assert spark.sql("SELECT e5(NULL)").collect() == [(None,)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"role": None}, "role is None; it must be 'query' or 'passage'"),
        ({"role": "query", "instruction": 5}, "instruction is 5; it must be one sentence"),
        ({"role": "document"}, "Unknown role 'document'"),
        ({"role": "query", "instruction": "Find it"}, "takes none"),
        ({"role": "query", "windows": 5}, "Unknown option 'windows'"),
    ],
)
def test_a_wrong_option_is_refused_when_the_udf_is_made(
    model: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        embedding_udf(model=model, **options)


def test_a_column_of_roles_is_for_embed(spark: SparkSession, model: str) -> None:
    with pytest.raises(OptionError, match=r"one role and one instruction .* use embed"):
        embedding_udf(role=F.lit("query"), model=model)
