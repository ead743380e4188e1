"""embed: what it adds, passes through and refuses, and that nothing runs before an action."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from e5spark.errors import ColumnError, E5SparkError, ModelError, OptionError
from e5spark.spark import embed, embedding_udf
from tests.oracle import FP32_TOLERANCE, assert_close, reference, rows_of, vectors_of

ADDED = {
    "embedding": "array<float>",
    "n_tokens": "int",
    "truncated": "boolean",
    "already_prompted": "boolean",
    "status": "string",
    "error": "string",
}
ODD_NAME = "the.`text`, (odd)"


@pytest.fixture(scope="module")
def wide(spark: SparkSession) -> DataFrame:
    """One row of every type that a table can hold, and names that need quoting."""
    return spark.sql(
        f"""
        SELECT
            'A text to embed.' AS `{ODD_NAME.replace("`", "``")}`,
            7L AS `id`,
            CAST('12.3400' AS DECIMAL(38, 18)) AS `price.in.``euro``s`,
            DATE'0001-01-01' AS day,
            TIMESTAMP'2024-02-29 23:59:59.999999' AS at,
            TIMESTAMP_NTZ'2024-02-29 12:00:00.000001' AS at_ntz,
            X'00FF10E9' AS payload,
            CAST(X'636166E9' AS STRING) AS not_utf8,
            -0.0D AS minus_zero, CAST('NaN' AS FLOAT) AS nan,
            CAST(NULL AS ARRAY<STRUCT<a: INT, b: MAP<STRING, BINARY>>>) AS nothing,
            array(named_struct('a', 1S, 'b', map('k', X'00FF')), NULL) AS nested,
            INTERVAL '1 02:03:04.5' DAY TO SECOND AS took,
            true AS flag
        """
    )


def test_embed_adds_its_columns_and_runs_nothing_before_an_action(
    make_table: Callable[..., DataFrame], model: str, jobs: Callable[[], int]
) -> None:
    docs = make_table(["one text", None])
    vectors = docs.transform(embed, text="text", role="passage", model=model)
    types = {field.name: field.dataType.simpleString() for field in vectors.schema}
    assert types == {"id": "bigint", "text": "string", **ADDED}
    assert jobs() == 0
    rows = rows_of(vectors)
    assert jobs() > 0
    assert [row["status"] for row in rows] == ["ok", "null_text"]


def test_all_columns_pass_through_unchanged(wide: DataFrame, model: str) -> None:
    vectors = embed(wide, text=ODD_NAME, role="query", model=model)
    assert vectors.columns == [*wide.columns, *ADDED]
    passed = vectors.drop(*ADDED)
    assert passed.schema == wide.schema
    # As text, because NaN differs from itself and 0.0 equals -0.0.
    assert repr(readable(passed).collect()) == repr(readable(wide).collect())
    actual = vectors.select(F.col("id"), "embedding")
    expected = reference(model, ("A text to embed.",), prompt="query: ")
    assert_close(vectors_of(actual), expected, FP32_TOLERANCE)


@pytest.mark.parametrize(
    "convert",
    [
        lambda df, model: embed(df, text=ODD_NAME, role="query", model=model),
        lambda df, model: df.withColumn(
            "embedding", embedding_udf(role="query", model=model)(quoted(ODD_NAME))
        ),
    ],
    ids=["embed", "embedding_udf"],
)
def test_only_the_text_travels_through_python(
    spark: SparkSession,
    wide: DataFrame,
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    convert: Callable[[DataFrame, str], DataFrame],
) -> None:
    wide.write.parquet(str(tmp_path / "wide"))
    convert(spark.read.parquet(str(tmp_path / "wide")), model).explain()
    plan = capsys.readouterr().out
    arguments = re.findall(r"ArrowEvalPython \[\w+\((.*?)\)#\d+\]", plan)
    assert len(arguments) == 1, plan
    assert ODD_NAME in arguments[0]
    assert not [name for name in wide.columns if name != ODD_NAME and f"{name}#" in arguments[0]]


def test_the_text_column_is_found_in_any_case(
    make_table: Callable[..., DataFrame], model: str
) -> None:
    rows = rows_of(embed(make_table(["one"]), text="TEXT", role="query", model=model))
    assert [row["status"] for row in rows] == ["ok"]


def test_a_prefix_makes_room_for_a_second_embedding(
    make_table: Callable[..., DataFrame], model: str
) -> None:
    docs = make_table(["one text", "another one"])
    once = embed(docs, text="text", role="passage", model=model)
    twice = embed(once, text="text", role="query", model=model, column_prefix="query_")
    assert twice.columns == [*docs.columns, *ADDED, *(f"query_{name}" for name in ADDED)]
    for prefix, prompt in (("", "passage: "), ("query_", "query: ")):
        actual = vectors_of(twice.select("id", F.col(f"{prefix}embedding").alias("embedding")))
        expected = reference(model, ("one text", "another one"), prompt=prompt)
        assert_close(actual, expected, FP32_TOLERANCE)


@pytest.mark.parametrize(
    ("query", "text", "message"),
    [
        ("SELECT 'a' AS body", "bodi", "no column 'bodi'. Did you mean 'body'?"),
        ("SELECT 'a' AS body", "zzz", "no column 'zzz'. It has 'body'."),
        ("SELECT 1 AS body", "body", "'body' is int; embed needs a string column"),
        ("SELECT X'00' AS body", "body", "'body' is binary; embed needs a string column"),
        ("SELECT array('a') AS body", "body", "'body' is array<string>"),
        ("SELECT 'a' AS body, 1 AS embedding", "body", "already has a column 'embedding'"),
        ("SELECT 'a' AS body, 1 AS STATUS", "body", "column 'STATUS', and e5spark adds 'status'"),
        ("SELECT 'a' AS body, 1 AS __e5spark", "body", "column '__e5spark'; names that begin with"),
        ("SELECT 'a' AS body, 1 AS __E5Spark_kind", "body", "'__E5Spark_kind'; names that begin"),
        ("SELECT 'a' AS body, 'b' AS Body", "body", "2 columns 'body'; rename one of them"),
    ],
)
def test_a_column_that_breaks_the_contract_is_refused_before_any_job(
    spark: SparkSession,
    model: str,
    jobs: Callable[[], int],
    query: str,
    text: str,
    message: str,
) -> None:
    with pytest.raises(ColumnError, match=re.escape(message)):
        embed(spark.sql(query), text=text, role="query", model=model)
    assert jobs() == 0


@pytest.mark.parametrize(
    ("model_name", "kind", "message"),
    [
        ("intfloat/multilingual-e5-smal", ModelError, "mean 'intfloat/multilingual-e5-small'?"),
        (
            "models/e5",
            ModelError,
            "name its directory: an absolute path, './relative' or 'archive:name'",
        ),
        ("/nowhere/e5", ModelError, "There is no model directory '/nowhere/e5'; every machine"),
        ("archive:nothing", ModelError, "There is no archive 'nothing' on this machine"),
        ("", OptionError, "The model is empty"),
    ],
)
def test_a_model_that_is_not_there_is_refused_before_any_job(
    make_table: Callable[..., DataFrame],
    jobs: Callable[[], int],
    model_name: str,
    kind: type[E5SparkError],
    message: str,
) -> None:
    docs = make_table(["one"])
    with pytest.raises(kind, match=re.escape(message)):
        embed(docs, text="text", role="query", model=model_name)
    assert jobs() == 0


def test_a_role_that_e5_does_not_know_is_refused(
    make_table: Callable[..., DataFrame], model: str
) -> None:
    with pytest.raises(OptionError, match="Unknown role 'document'; use 'query' or 'passage'"):
        embed(make_table(["one"]), text="text", role="document", model=model)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"text": F.col}, "pass the name of a string column, such as text='body'"),
        ({"text": None}, "text is None; pass the name of a string column"),
        ({"text": b"text"}, "text is b'text'; pass the name of a string column"),
        ({"text": []}, "text names no column; pass the name"),
        ({"text": ["text", None]}, "text names the column None; pass each name as a string"),
        ({"role": None}, "role is None; it must be 'query' or 'passage', or a Column"),
        ({"instruction": 5}, "instruction is 5; it must be one sentence"),
        ({"join": 5}, "join is 5; it must be a string"),
        ({"column_prefix": None}, "column_prefix is None; it must be a string, '' for none"),
        ({"model": None}, "model is None; it must be the name of a checkpoint"),
        ({"model": Path("/models/e5")}, "or a directory as a string"),
    ],
)
def test_an_option_of_the_wrong_type_is_refused_before_any_job(
    make_table: Callable[..., DataFrame],
    model: str,
    jobs: Callable[[], int],
    option: dict[str, object],
    message: str,
) -> None:
    if option.get("text") is F.col:  # which needs a session
        option = {"text": F.col("text")}
    with pytest.raises(OptionError, match=re.escape(message)):
        embed(make_table(["one"]), **{"text": "text", "role": "query", "model": model} | option)
    assert jobs() == 0


def test_a_relative_directory_is_the_drivers(
    make_table: Callable[..., DataFrame], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = make_table(["one text"])
    monkeypatch.chdir(Path(model).parent)
    actual = embed(docs, text="text", role="query", model=f"./{Path(model).name}")
    monkeypatch.chdir("/")
    expected = reference(model, ("one text",), prompt="query: ")
    assert_close(vectors_of(actual), expected, FP32_TOLERANCE)


def readable(df: DataFrame) -> DataFrame:
    """The table with the bytes of the string that is not UTF-8, which no Python string can hold."""
    return df.withColumn("not_utf8", F.col("not_utf8").cast("binary"))


def quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
