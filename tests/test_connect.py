"""Spark Connect: the same vectors and the same refusals, with no JVM in the client's process."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.errors import PySparkException
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.clustering import KMeans
from pyspark.ml.functions import vector_to_array
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from e5spark import nearest
from e5spark.cli import main
from e5spark.errors import ColumnError, InputError, ModelError
from e5spark.job import run as job
from e5spark.job.job_file import load
from e5spark.spark import E5Embedder, embed, embedding_udf
from e5spark.tables.spark_settings import described
from e5spark.tables.storage.open import open_storage
from tests.cluster import connect_server
from tests.oracle import FP32_TOLERANCE, assert_close, reference
from tests.trace import Trace

pytestmark = pytest.mark.cluster

Client = Callable[..., Any]


@pytest.fixture(scope="module")
def client(trace_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Calls a function in a process whose Spark is the Connect server.

    A process of its own, because PySpark has either classic sessions or Connect sessions.
    """
    spawn = multiprocessing.get_context("spawn")
    with (
        connect_server(tmp_path_factory.mktemp("connect")) as url,
        ProcessPoolExecutor(1, mp_context=spawn, initializer=connect, initargs=(url,)) as pool,
    ):
        yield lambda function, *arguments: pool.submit(call, function, *arguments).result()
        pool.submit(disconnect).result()


def connect(url: str) -> None:
    os.environ["SPARK_REMOTE"] = url


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except PySparkException as error:  # cannot be unpickled
        raise RuntimeError(f"{type(error).__name__}: {error}") from None


def disconnect() -> None:
    session().stop()


def session() -> SparkSession:
    return SparkSession.builder.getOrCreate()


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory, texts: tuple[str, ...]) -> str:
    path = tmp_path_factory.mktemp("docs") / "docs.parquet"
    kinds = ["query", "passage"] * 50
    table = pa.table({"id": range(100), "text": texts[:100], "kind": kinds})
    pq.write_table(table, path)
    return str(path)


def test_vectors_and_statuses_are_those_of_classic_spark(
    client: Client, docs: str, model: str, texts: tuple[str, ...], trace_directory: Path
) -> None:
    trace = Trace(trace_directory)
    table = client(embedded, docs, model)
    assert set(table["status"].to_pylist()) == {"ok"}
    actual = np.array(table["embedding"].to_pylist(), np.float32)
    expected = np.where(
        np.arange(100)[:, None] % 2 == 0,
        reference(model, texts[:100], prompt="query: "),
        reference(model, texts[:100], prompt="passage: "),
    )
    assert_close(actual, expected, FP32_TOLERANCE)
    assert trace.rows() == 100


def embedded(docs: str, model: str) -> pa.Table:
    df = session().read.parquet(docs).repartition(3)
    vectors = embed(df, text="text", role=F.col("kind"), model=model).filter("status = 'ok'")
    return vectors.select("id", "embedding", "status").toArrow().sort_by("id")


def test_the_udf_works_as_a_column(
    client: Client, docs: str, model: str, texts: tuple[str, ...]
) -> None:
    table = client(by_udf, docs, model)
    actual = np.array(table["embedding"].to_pylist(), np.float32)
    assert_close(actual, reference(model, texts[:100], prompt="query: "), FP32_TOLERANCE)


def by_udf(docs: str, model: str) -> pa.Table:
    column = embedding_udf(role="query", model=model)("text").alias("embedding")
    return session().read.parquet(docs).select("id", column).toArrow().sort_by("id")


def test_a_pipeline_with_an_embedder_is_fitted_saved_and_loaded(
    client: Client, docs: str, model: str, texts: tuple[str, ...], tmp_path: Path
) -> None:
    table = client(by_pipeline, docs, model, str(tmp_path / "fitted"))
    actual = np.array(table["embedding"].to_pylist(), np.float32)
    assert_close(actual, reference(model, texts[:10], prompt="query: "), FP32_TOLERANCE)
    assert set(table["prediction"].to_pylist()) == {0, 1}


def by_pipeline(docs: str, model: str, path: str) -> pa.Table:
    df = session().read.parquet(docs).where("id < 10").coalesce(1)
    embedder = E5Embedder(inputCol="text", outputCol="features", role="query", model=model)
    means = KMeans(k=2, seed=1, maxIter=1, initMode="random")
    Pipeline(stages=[embedder, means]).fit(df).write().overwrite().save(path)
    result = PipelineModel.load(path).transform(df)
    vector = vector_to_array("features", "float32").alias("embedding")
    return result.select("id", "prediction", vector).toArrow().sort_by("id")


def test_operations_are_tagged_with_their_phase_where_there_are_no_descriptions(
    client: Client,
) -> None:
    tagged = client(tags_inside_and_after)
    assert tagged == ({"mine", "e5spark: embed chunk 1 of 2 (25000 rows)"}, {"mine"})


def tags_inside_and_after() -> tuple[set[str], set[str]]:
    spark = session()
    spark.addTag("mine")
    with described(spark, "embed chunk 1 of 2 (25,000 rows)"):
        inside = set(spark.getTags())
    after = set(spark.getTags())
    spark.removeTag("mine")
    return inside, after


def test_nearest_finds_the_query_itself_first(client: Client, docs: str, model: str) -> None:
    table = client(nearest_to_the_first_rows, docs, model)
    rows = table.to_pylist()
    assert [(row["query_id"], row["rank"]) for row in rows] == [
        (query, rank) for query in range(5) for rank in (1, 2, 3)
    ]
    assert [row["corpus_id"] for row in rows[::3]] == [0, 1, 2, 3, 4]


def nearest_to_the_first_rows(docs: str, model: str) -> pa.Table:
    df = session().read.parquet(docs).repartition(3)
    vectors = embed(df, text="text", role="passage", model=model)
    best = nearest(vectors.where("id < 5"), vectors, k=3, filter="id < 50")
    return best.toArrow().sort_by([("query_id", "ascending"), ("rank", "ascending")])


def test_the_job_runs_on_connect(
    client: Client, job_file: Callable[..., str], docs: str, model: str, tmp_path: Path
) -> None:
    file = job_file(
        input={"path": docs},
        embed={"text": "text", "role": "query"},
        model={"name": model},
        output={"path": str(tmp_path / "out")},
    )
    assert client(main, ["doctor", file]) == 0
    assert not (tmp_path / "out").exists()
    assert client(main, ["embed", file]) == 0
    assert pq.read_table(tmp_path / "out").num_rows == 100
    assert client(main, ["embed", file]) == 5
    assert (
        client(main, ["embed", file, f"--set=output.path={tmp_path}/a", "--set=embed.text=b"]) == 3
    )


def test_a_stream_wants_a_classic_session(
    client: Client, job_file: Callable[..., str], docs: str, model: str, tmp_path: Path
) -> None:
    file = job_file(
        input={"path": str(Path(docs).parent), "id": "id", "trigger": "available_now"}
        | {"checkpoint_location": str(tmp_path / "checkpoint")},
        embed={"text": "text", "role": "query"},
        model={"name": model},
        output={"path": str(tmp_path / "out")},
    )
    with pytest.raises(InputError, match="does not work over Spark Connect"):
        client(run_stream, file)
    assert client(main, ["embed", file]) == 3
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "checkpoint").exists()


def run_stream(file: str) -> None:
    job.run(session(), load(Path(file)))


@pytest.mark.parametrize(
    ("text", "model_name", "kind", "message"),
    [
        ("texd", None, ColumnError, "no column 'texd'. Did you mean 'text'"),
        ("id", None, ColumnError, "'id' is bigint"),
        ("text", "intfloat/e5-smal-v2", ModelError, "Unknown model"),
        ("text", "/nowhere/e5", ModelError, "no model directory '/nowhere/e5'"),
    ],
)
def test_what_cannot_work_is_refused_before_any_job(
    client: Client,
    docs: str,
    model: str,
    text: str,
    model_name: str | None,
    kind: type[Exception],
    message: str,
) -> None:
    with pytest.raises(kind, match=message):
        client(planned, docs, text, model_name or model)


def planned(docs: str, text: str, model: str) -> None:
    embed(session().read.parquet(docs), text=text, role="query", model=model)


@pytest.mark.parametrize("prefix", ["", "file:", "file://"])
def test_storage_is_the_disk_that_client_and_server_share(
    client: Client, tmp_path: Path, prefix: str
) -> None:
    assert client(put, f"{prefix}{tmp_path}/out", "a.json", b"1") == ["a.json"]
    assert (tmp_path / "out" / "a.json").read_bytes() == b"1"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_storage_refuses_a_directory_that_the_server_does_not_see(client: Client) -> None:
    # The two have different working directories.
    with pytest.raises(InputError, match="does not see the files that this process writes under"):
        client(put, "out", "a.json", b"1")


def test_storage_of_other_file_systems_wants_a_classic_session(client: Client) -> None:
    with pytest.raises(InputError, match=r"^hdfs://host/out cannot be reached over Spark Connect"):
        client(put, "hdfs://host/out", "a.json", b"1")


def put(path: str, name: str, data: bytes) -> list[str]:
    files = open_storage(session(), path)
    files.put(name, data)
    return files.list("")
