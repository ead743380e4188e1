"""E5Embedder: embed as a stage of a pipeline, with params that are checked, saved and loaded."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from pyspark.errors import PySparkException
from pyspark.ml import PipelineModel
from pyspark.ml.clustering import KMeans
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import VectorUDT
from pyspark.ml.param import Param
from pyspark.sql import DataFrame, SparkSession

import e5spark
from e5spark.errors import ColumnError, OptionError
from e5spark.model.spec import ModelOptions
from e5spark.spark import E5Embedder, embed
from tests.oracle import rows_of, vectors_of
from tests.trace import Trace

Make = Callable[..., DataFrame]

# One value for each param and option, other than its default.
PARAMS: dict[str, Any] = {
    "inputCol": "text",
    "outputCol": "features",
    "model": "intfloat/multilingual-e5-large-instruct",
    "role": "query",
    "instruction": "Find the same",
    "asVector": False,
    "handleInvalid": "keep",
}
OPTIONS: dict[str, Any] = {
    "checkpoint": "intfloat/e5-small-v2",
    "tokenizer": "/models/e5",
    "revision": "0" * 40,
    "download": True,
    "prompts": {"passage": "p: ", "query": "q: "},
    "pooling": "cls",
    "normalize": False,
    "max_tokens": 128,
    "dim": 64,
    "force_dim": True,
    "long_text": "mean",
    "overlap": 3,
    "already_prompted": "keep",
    "output_type": "int8",
    "calibration": "/models/ranges.json",
    "engine": "torch",
    "precision": "fp32",
    "device": "cpu",
    "token_budget": 4096,
    "sort_window": 100,
    "text_deadline": 1.5,
    "max_characters": 1000,
}


@pytest.fixture
def make(model: str) -> Callable[..., E5Embedder]:
    """An embedder of the column text, with other params on top."""

    def embedder(**params: Any) -> E5Embedder:
        defaults = {"inputCol": "text", "outputCol": "features", "role": "passage", "model": model}
        return E5Embedder(**{**defaults, **params})

    return embedder


def test_the_vectors_of_a_pipeline_are_those_of_embed_and_survive_being_saved(
    make_table: Make, make: Callable[..., E5Embedder], model: str, tmp_path: Path, trace: Trace
) -> None:
    docs = make_table(["one cat", "a cat", "seven ships", "two ships"], partitions=1)
    means = KMeans(k=2, seed=1, maxIter=1, initMode="random")
    embedder = make(max_tokens=8)
    vectors = embedder.transform(docs).cache()
    fitted = PipelineModel(stages=[embedder, means.fit(vectors)])
    vectors.unpersist()
    assert trace.rows() == 4  # 20 by Pipeline.fit, because KMeans reads its input five times
    fitted.save(str(tmp_path / "fitted"))
    loaded = PipelineModel.load(str(tmp_path / "fitted"))
    columns = ["id", "prediction", vector_to_array("features", "float32").alias("embedding")]
    before, after = (rows.transform(docs).select(*columns) for rows in (fitted, loaded))
    assert rows_of(before) == rows_of(after)
    assert len({row["prediction"] for row in rows_of(after)}) == 2
    expected = embed(docs, text="text", role="passage", model=model, max_tokens=8)
    np.testing.assert_array_equal(vectors_of(after), vectors_of(expected))


@pytest.mark.usefixtures("jvm")
def test_every_param_and_option_survives_being_saved(spark: SparkSession, tmp_path: Path) -> None:
    embedder = E5Embedder(**PARAMS, **OPTIONS)
    embedder.save(str(tmp_path / "embedder"))
    loaded = E5Embedder.load(str(tmp_path / "embedder"))
    assert loaded.uid == embedder.uid
    assert values(loaded) == values(embedder) == {**PARAMS, "options": OPTIONS}


def test_these_are_all_params_and_options() -> None:
    assert {param.name for param in E5Embedder().params} == {*PARAMS, "options"}
    assert set(get_type_hints(ModelOptions)) == set(OPTIONS)
    documented = inspect.getdoc(E5Embedder)
    for param in (*PARAMS, "**options"):
        assert f"    {param}: " in documented


def test_nothing_runs_before_an_action_nor_for_the_size_of_the_vectors(
    make_table: Make, make: Callable[..., E5Embedder], jobs: Callable[[], int]
) -> None:
    docs = make_table(["a text"])
    vectors = make().transform(docs)
    assembler = VectorAssembler(inputCols=["features", "id"], outputCol="all")
    assembled = assembler.transform(vectors)
    assert jobs() == 0
    assert assembled.schema["all"].metadata["ml_attr"]["num_attrs"] == 32 + 1


def test_transform_schema_says_what_transform_returns(
    make_table: Make, make: Callable[..., E5Embedder], jobs: Callable[[], int], model: str
) -> None:
    docs = make_table(["a text"])
    for as_vector in (True, False):
        embedder = make(asVector=as_vector)
        schema = embedder.transformSchema(docs.schema)
        assert schema == embedder.transform(docs).schema
        assert schema.names == ["id", "text", "features"]
        fingerprint = schema["features"].metadata["e5spark.fingerprint"]
        column = embed(docs, text="text", role="passage", model=model).schema["embedding"]
        assert fingerprint == column.metadata["e5spark.fingerprint"]
        assert schema["features"].dataType == (VectorUDT() if as_vector else column.dataType)
    assert jobs() == 0


def test_a_text_without_a_vector_ends_the_query_or_costs_its_row_or_is_null(
    make_table: Make, make: Callable[..., E5Embedder]
) -> None:
    docs = make_table(["a text", None, " "])
    with pytest.raises(PySparkException, match=r"'text' has no vector; its status is (null|empty)"):
        make().transform(docs).collect()
    skipped = make(handleInvalid="skip").transform(docs).collect()
    assert [row.id for row in skipped] == [0]
    kept = make(handleInvalid="keep").transform(docs).collect()
    assert sorted((row.id, row.features is None) for row in kept) == [
        (0, False),
        (1, True),
        (2, True),
    ]
    assert {row.features for row in kept} == {skipped[0].features, None}


def test_arrays_are_those_of_the_output_type(
    make_table: Make, make: Callable[..., E5Embedder], model: str
) -> None:
    docs = make_table(["a text"])
    embedder = make(asVector=False, output_type="ubinary")
    expected = embed(docs, text="text", role="passage", model=model, output_type="ubinary")
    assert embedder.transform(docs).first().features == expected.first().embedding


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"role": "document"}, "Unknown role 'document'"),
        ({"handleInvalid": "ignore"}, "must be one of error, skip, keep"),
        ({"max_token": 3}, "Unknown option 'max_token'; the options are checkpoint"),
        ({"max_tokens": 0}, "max_tokens is 0; it must be a positive"),
        ({"long_text": "split"}, "one vector per row; for long_text='split', use embed"),
        ({"output_type": "ubinary"}, "dense vectors have doubles. Leave output_type out"),
    ],
)
def test_a_wrong_param_is_refused_at_construction(params: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        E5Embedder(inputCol="text", **params)


@pytest.mark.parametrize(("param", "value"), [("inputCol", 5), ("model", 5), ("asVector", "yes")])
def test_a_param_of_the_wrong_type_is_refused_as_spark_does(param: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f'Invalid param value given for param "{param}"'):
        E5Embedder(**{param: value})


def test_what_cannot_work_is_refused_before_any_job(
    make_table: Make, make: Callable[..., E5Embedder], jobs: Callable[[], int]
) -> None:
    docs = make_table(["a text"])
    embedder = make()
    for refusal, message in (
        (lambda: E5Embedder(inputCol="text", role="query").transform(docs), "has no model"),
        (lambda: make(instruction="Find").transform(docs), "this checkpoint takes none"),
        (lambda: embedder.transform(docs, {embedder.options: {"dims": 3}}), "Unknown option"),
        (lambda: embedder.transform(docs, {embedder.handleInvalid: "no"}), "must be one of error"),
    ):
        with pytest.raises(OptionError, match=message):
            refusal()
    with pytest.raises(ColumnError, match=r"column 'id', .*; give outputCol another name"):
        make(outputCol="ID").transform(docs)
    with pytest.raises(ColumnError, match="'id' is bigint"):
        make(inputCol="id").transform(docs)
    assert jobs() == 0


def test_setters_and_getters_agree_and_options_replace_each_other() -> None:
    embedder = (
        E5Embedder(max_tokens=5)
        .setInputCol("body")
        .setOutputCol("vector")
        .setModel("intfloat/e5-small-v2")
        .setRole("query")
        .setInstruction("Find")
        .setAsVector(False)
        .setHandleInvalid("skip")
        .setOptions(dim=64)
    )
    assert embedder.getInputCol() == "body"
    assert embedder.getOutputCol() == "vector"
    assert embedder.getModel() == "intfloat/e5-small-v2"
    assert embedder.getRole() == "query"
    assert embedder.getInstruction() == "Find"
    assert embedder.getAsVector() is False
    assert embedder.getHandleInvalid() == "skip"
    assert embedder.getOptions() == {"dim": 64}


def test_a_copy_has_params_of_its_own() -> None:
    embedder = E5Embedder(model="intfloat/e5-small-v2", max_tokens=5)
    copy = embedder.copy({embedder.options: {"max_tokens": 6}})
    assert (embedder.getOptions(), copy.getOptions()) == ({"max_tokens": 5}, {"max_tokens": 6})
    assert copy.getModel() == "intfloat/e5-small-v2"


def test_a_saved_pipeline_names_the_public_class() -> None:
    module = __import__(E5Embedder.__module__, fromlist=["E5Embedder"])
    assert module.E5Embedder is E5Embedder is e5spark.E5Embedder
    assert E5Embedder.__module__ == "e5spark.spark"


def values(embedder: E5Embedder) -> dict[str, Any]:
    params: dict[Param[Any], Any] = embedder.extractParamMap()
    return {param.name: value for param, value in params.items()}
