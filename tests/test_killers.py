"""Rows that end the Python worker: they cost themselves, and no other row."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from tests import killers
from tests.cluster import python_path
from tests.tables import Job, rows_of, table_of

ROWS = {number: f"text number {number} " * (1 + number % 9) for number in range(60)}
DEADLY = {7: killers.SIGKILL, 43: killers.MEMORY}


@pytest.fixture
def armed(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> pytest.MonkeyPatch:
    """Workers die of the texts of ``killers``."""
    path = python_path(killers.arm(tmp_path))
    monkeypatch.setitem(spark.sparkContext.environment, "PYTHONPATH", path)
    return monkeypatch


def test_in_local_mode_a_job_embeds_all_rows_but_the_killers(
    armed: pytest.MonkeyPatch,
    udf_kind: str,
    embed: Callable[..., dict[str, Any]],
    base: Job,
    tmp_path: Path,
) -> None:
    pq.write_table(table_of({**ROWS, **DEADLY}), tmp_path / "docs.parquet")
    base["model"]["engine"] = "openvino"
    report = embed()
    assert (report["code"], report["ok"], report["error"]) == (4, 58, "GateError"), report
    rows = rows_of(tmp_path / "out")
    assert {row["id"]: row["error"] for row in rows if row["status"] == "error"} == {
        7: "The worker process died: signal 9; perhaps out of memory.",
        43: "MemoryError",
    }
