"""Rows that end the Python worker: they cost themselves, and no other row."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from tests import killers
from tests.cluster import REPOSITORY, python_path, spark_submit, standalone_cluster
from tests.oracle import INVARIANCE_TOLERANCE, assert_close
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


@pytest.mark.chaos
@pytest.mark.parametrize("where", ["local", "cluster"])
def test_of_5000_rows_only_the_three_that_end_their_worker_have_no_vector(
    where: str, job_file: Callable[..., str], base: Job, tmp_path: Path
) -> None:
    if where == "local":
        check_5000_rows("local[2]", job_file, base, tmp_path)
    else:
        with standalone_cluster(tmp_path / "cluster", workers=2, cores=1) as master:
            check_5000_rows(master, job_file, base, tmp_path)


def check_5000_rows(master: str, job_file: Callable[..., str], base: Job, tmp_path: Path) -> None:
    rows = {number: f"text number {number} " * (1 + number % 40) for number in range(5000)}
    deadly = {1000: killers.SIGKILL, 2500: killers.MEMORY, 4000: killers.LOOP}
    base["model"] |= {"engine": "openvino", "text_deadline": 10}
    base["run"] = {"chunk_rows": 2500, "partitions": 2}
    path = python_path(killers.arm(tmp_path))
    submit = ["--master", master, "--conf", f"spark.executorEnv.PYTHONPATH={path}"]
    reports, tables = [], []
    for name, texts in (("without", rows), ("with", {**rows, **deadly})):
        pq.write_table(table_of(texts), tmp_path / "docs.parquet")
        base["output"] = {"path": str(tmp_path / name)}
        script = str(REPOSITORY / "jobs" / "embed.py")
        environment = {"PYTHONPATH": path} if master.startswith("local") else None
        completed = spark_submit([*submit, script, job_file(**base)], env=environment, timeout=600)
        reports.append(
            {**json.loads(completed.stdout.splitlines()[-1]), "code": completed.returncode}
        )
        tables.append({row["id"]: row for row in rows_of(tmp_path / name)})
    assert [(report["code"], report["ok"]) for report in reports] == [(0, 5000), (4, 4997)]
    without, killed = tables
    assert {id: row["error"] for id, row in killed.items() if row["status"] == "error"} == {
        1000: "The worker process died: signal 9; perhaps out of memory.",
        2500: "MemoryError",
        4000: "The text was not encoded within text_deadline, 10 s.",
    }
    good = [id for id in rows if id not in deadly]
    actual, expected = (
        np.array([table[id]["embedding"] for id in good], np.float32) for table in (killed, without)
    )
    assert_close(actual, expected, INVARIANCE_TOLERANCE)
    seconds = [report["seconds"] for report in reports]
    print(f"{master}: {seconds[1]:.0f} s with three killers, {seconds[0]:.0f} s without")
