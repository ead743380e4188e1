"""The sizes of the parts of a run."""

import pytest
from pyspark.sql import SparkSession

from e5spark.job.chunks import Sizes, sizes


@pytest.mark.parametrize(("cpus", "slots"), [("1", 2), ("2", 1), ("4", 1)])
def test_a_session_has_as_many_slots_as_tasks_run_at_once(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch, cpus: str, slots: int
) -> None:
    """Of the two cores that the session has."""
    monkeypatch.setattr(type(spark.conf), "get", lambda *_: cpus)
    chunks = sizes(spark, rows=0, tasks=0, concurrent_chunks=2)
    assert chunks == Sizes(rows=20_000, tasks=slots, concurrent_chunks=2)


def test_sizes_of_the_config_are_kept(spark: SparkSession) -> None:
    chunks = sizes(spark, rows=7, tasks=3, concurrent_chunks=1)
    assert chunks == Sizes(rows=7, tasks=3, concurrent_chunks=1, forced=True)
