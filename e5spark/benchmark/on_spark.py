"""Contenders on Spark, each with a local session of its own."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf
from pyspark.sql.types import ArrayType, FloatType

from e5spark.benchmark import constant, counter, passes
from e5spark.benchmark.sentence_model import worker_model
from e5spark.benchmark.task import SAMPLE, LoadedContender, Task
from e5spark.model.json_file import read_json
from e5spark.model.spec import model_spec
from e5spark.spark import embed
from e5spark.spark.columns import TextColumns
from e5spark.spark.embedding import embed_plan, plan_model
from e5spark.spark.udf import has_arrow_udf

Embed = Callable[[DataFrame], DataFrame]
_VECTOR = ArrayType(FloatType())


def start(task: Task) -> LoadedContender:
    """Returns the contender of a task, with its model loaded in every worker."""
    spark = _session(task)
    texts = task.read_texts()
    sample = _table(spark, texts[:SAMPLE], task.workers).cache()
    rows = _table(spark, texts, task.partitions)
    if task.copies > 1:
        # A number before each text, because e5spark computes equal texts of a sort window once.
        copy = spark.range(task.copies, numPartitions=1).withColumnRenamed("id", "copy")
        rows = rows.crossJoin(F.broadcast(copy)).withColumn(
            "text", F.concat_ws(" ", "copy", "text")
        )
    rows = rows.cache()
    sample.count()  # now the JVM is warm, and no Python worker runs yet
    rows.count()
    embedded = _KINDS[task.kind](task)
    started = time.time()
    spark.sparkContext.setJobGroup("first", "first vectors")
    table = embedded(sample).select("row", "embedding").toArrow().sort_by("row")
    spark.sparkContext.setJobGroup("all", "all rows")
    vectors = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    first = passes.totals(started).first
    return LoadedContender(
        vectors=None if task.copies > 1 else vectors.reshape(len(table), -1),
        first_vector_seconds=None if first is None else first - _launch_time(spark, "first"),
        embed=lambda: _drain(embedded(rows)),
        warm_up=lambda: _drain(embedded(sample)),
        stop=spark.stop,
    )


def _session(task: Task) -> SparkSession:
    settings: dict[str, bool | float | int | str | None] = {
        "spark.driver.host": "127.0.0.1",
        "spark.driver.memory": "2g",
        "spark.log.level": "ERROR",
        "spark.task.cpus": str(max(task.threads // task.workers, 1)),
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }
    if task.kind == "recipe":
        settings["spark.sql.execution.arrow.maxRecordsPerBatch"] = "1000"
    builder = SparkSession.builder.master(f"local[{task.threads}]").appName(task.name)
    return builder.config(map=settings).getOrCreate()


def _table(spark: SparkSession, texts: list[str], partitions: int) -> DataFrame:
    table = pa.table({"row": pa.array(range(len(texts)), pa.int32()), "text": texts})
    return spark.createDataFrame(table).repartition(partitions)


def _drain(df: DataFrame) -> None:
    df.write.format("noop").mode("overwrite").save()


def _launch_time(spark: SparkSession, group: str) -> float:
    """When Spark launched the first task of the last stage of a job group: Unix seconds."""
    context = spark.sparkContext
    tracker = context.statusTracker()
    jobs = [tracker.getJobInfo(job) for job in tracker.getJobIdsForGroup(group)]
    stages = [stage for job in jobs if job is not None for stage in job.stageIds]
    # Only a benchmark, which has its own JVM, may reach into it like this.
    tasks = context._jsc.sc().statusStore().taskList(max(stages), 0, 1000)
    launched = [tasks.apply(number).launchTime().getTime() for number in range(tasks.size())]
    return float(min(launched)) / 1000


def _recipe(task: Task) -> Embed:
    """The recipe that most people write: a pandas UDF that calls sentence-transformers."""
    directory, prefix, device = task.model, task.prefix, task.options.get("device")

    def encode(texts: pd.Series) -> pd.Series:
        vectors = worker_model(directory, device).encode((prefix + texts).tolist())
        return pd.Series(list(vectors))

    encode.__annotations__ = {"texts": pd.Series, "return": pd.Series}
    # PySpark's stubs do not know that the kind of UDF can come from the annotations.
    return _column(pandas_udf(encode, _VECTOR))  # type: ignore[call-overload]


def _predict_batch_udf(task: Task) -> Embed:
    directory, prefix, device = task.model, task.prefix, task.options.get("device")

    def make_predict() -> Callable[[npt.NDArray[np.object_]], npt.NDArray[np.float32]]:
        model = worker_model(directory, device)

        def predict(texts: npt.NDArray[np.object_]) -> npt.NDArray[np.float32]:
            vectors: npt.NDArray[np.float32] = model.encode([prefix + text for text in texts])
            return vectors

        return predict

    return _column(predict_batch_udf(make_predict, return_type=_VECTOR, batch_size=64))


def _embed(task: Task) -> Embed:
    """As a job embeds, which writes all rows, and not as ``show`` and ``limit`` need it."""
    counter.install(counter.run_counted)
    plan = plan_model(model_spec(task.model, dict(task.model_options)))
    texts = TextColumns(text="text", role=task.role)
    return lambda df: embed_plan(df, plan, texts, quick_start=False)


def _constant(task: Task) -> Embed:
    options = dict(task.model_options)
    run = partial(constant.run_constant, tokenizer=options.pop("tokenizer", False))
    counter.install(run)
    return partial(embed, text="text", role=task.role, model=task.model, **options)


def _bare(task: Task) -> Embed:
    if not has_arrow_udf():
        raise RuntimeError("This Spark has no Arrow UDFs; install PySpark >= 4.1.")
    from pyspark.sql.pandas.functions import arrow_udf  # absent before Spark 4.1

    hidden = int(read_json(Path(task.model) / "config.json")["hidden_size"])

    def vectors(batches: Iterator[pa.Array]) -> Iterator[pa.Array]:
        for texts in batches:
            offsets = np.arange(len(texts) + 1, dtype=np.int32) * hidden
            flat = np.ones(len(texts) * hidden, dtype=np.float32)
            yield pa.ListArray.from_arrays(offsets, flat)

    vectors.__annotations__ = {
        "batches": Iterator[pa.Array],
        "return": Iterator[pa.Array],
    }
    return _column(arrow_udf(vectors, _VECTOR))  # type: ignore[call-overload]  # as in _recipe


def _column(function: Callable[[str], object]) -> Embed:
    return lambda df: df.withColumn("embedding", function("text"))  # type: ignore[arg-type]


_KINDS: dict[str, Callable[[Task], Embed]] = {
    "recipe": _recipe,
    "predict-batch-udf": _predict_batch_udf,
    "embed": _embed,
    "constant": _constant,
    "bare": _bare,
}
