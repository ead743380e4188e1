"""The properties files of conf/: each sets one worker for each executor, and runs as it is."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cluster import REPOSITORY, spark_submit, standalone_cluster
from tests.tables import Job
from tests.trace import Trace

PROFILES = sorted((REPOSITORY / "conf").glob("spark-*.conf"))


def settings(profile: Path) -> dict[str, str]:
    """The settings of a properties file."""
    lines = [line for line in profile.read_text().splitlines() if line and line[0] != "#"]
    return dict(line.split(maxsplit=1) for line in lines)


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.stem)
def test_a_task_takes_all_cores_of_its_executor(profile: Path) -> None:
    conf = settings(profile)
    assert conf.get("spark.task.cpus") == conf.get("spark.executor.cores")


def test_the_profile_of_a_cluster_requests_no_more_cores_than_any_worker_has() -> None:
    assert settings(REPOSITORY / "conf" / "spark-cluster.conf")["spark.executor.cores"] == "1"


@pytest.mark.cluster
def test_the_profile_of_a_cluster_runs_on_a_worker_with_two_cores(
    job_file: Callable[..., str], base: Job, tmp_path: Path, trace: Trace
) -> None:
    docs = pa.table({"id": range(40), "body": [f"text {number}" for number in range(40)]})
    pq.write_table(docs, tmp_path / "docs.parquet")
    base["run"] = {"partitions": 4}
    profile = str(REPOSITORY / "conf" / "spark-cluster.conf")
    script = str(REPOSITORY / "jobs" / "run.py")
    with standalone_cluster(tmp_path / "cluster", workers=1, cores=2, memory="4g") as url:
        arguments = ["--master", url, "--properties-file", profile, script, "embed"]
        completed = spark_submit([*arguments, job_file(**base)])
    assert completed.returncode == 0, completed.stderr + completed.stdout
    assert json.loads(completed.stdout.splitlines()[-1])["ok"] == 40
    # Two executors of one core, each with one worker that has loaded the model once.
    assert len(trace.events("load")) == len({event["pid"] for event in trace.events("window")}) <= 2
