"""What Spark's UI says about the jobs of a run, read from the store that the UI reads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from e5spark.tables.spark_settings import described


@pytest.fixture
def started(spark: SparkSession) -> Callable[[], list[tuple[str, str]]]:
    """The description and the group of each job that this test has started, in order."""
    context: Any = spark._jsc.sc()
    store = context.statusStore()

    def listed() -> list[Any]:
        context.listenerBus().waitUntilEmpty()
        newest_first = store.jobsList(None)
        return [newest_first.apply(index) for index in reversed(range(newest_first.size()))]

    def text(option: Any) -> str:
        return str(option.get()) if option.isDefined() else ""

    before = {job.jobId() for job in listed()}
    return lambda: [
        (text(job.description()), text(job.jobGroup()))
        for job in listed()
        if job.jobId() not in before
    ]


def test_jobs_say_their_phase_and_the_user_s_own_description_returns(
    spark: SparkSession, started: Callable[[], list[tuple[str, str]]]
) -> None:
    spark.range(1).collect()
    with described(spark, "find changes"):
        spark.range(1).collect()
    spark.sparkContext.setJobGroup("nightly", "my job")
    with pytest.raises(ZeroDivisionError), described(spark, "publish"):
        print(1 / spark.range(1).collect()[0].id)
    spark.range(1).collect()
    forget(spark)
    assert started() == [
        ("", ""),
        ("e5spark: find changes", "e5spark"),
        ("e5spark: publish", "nightly"),
        ("my job", "nightly"),
    ]


def test_jobs_of_a_run_say_their_chunk_and_its_rows(
    spark: SparkSession,
    embed: Callable[..., dict[str, Any]],
    tmp_path: Path,
    started: Callable[[], list[tuple[str, str]]],
) -> None:
    def write(*bodies: str) -> None:
        table = pa.table({"id": range(len(bodies)), "body": bodies})
        pq.write_table(table, tmp_path / "docs.parquet")

    write("a", "b", "c")
    assert embed("run.chunk_rows=2")["code"] == 0
    first = started()
    write("a", "b", "changed")
    spark.sparkContext.setJobGroup("nightly", "my job")
    assert embed("run.chunk_rows=2")["code"] == 0
    forget(spark)
    second = started()[len(first) :]
    # Chunks run side by side, in threads of their own.
    assert sorted(phases(first)) == [
        "count ids",
        "embed chunk 1 of 2 (2 rows)",
        "embed chunk 2 of 2 (1 row)",
        "write the work list",
    ]
    assert phases(second) == [
        "find changes",
        "write the work list",
        "embed chunk 1 of 1 (1 row)",
        "publish",
    ]
    # Chunks too, which other threads run: who cancels a group cancels them.
    assert {group for _, group in second} == {"nightly"}
    assert {group for description, group in first if description} == {"e5spark"}


def forget(spark: SparkSession) -> None:
    """Takes the description and the group from this thread."""
    for key in ("spark.job.description", "spark.jobGroup.id"):
        spark.sparkContext.setLocalProperty(key, None)


def phases(jobs: list[tuple[str, str]]) -> list[str]:
    """The phases of described jobs, each once, in order."""
    texts = [description for description, _ in jobs if description.startswith("e5spark: ")]
    return [text.removeprefix("e5spark: ") for text in dict.fromkeys(texts)]
