"""A real standalone cluster on loopback: a master and two workers with one core each."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import killers
from tests.cluster import (
    REGISTERED,
    REPOSITORY,
    python_path,
    spark_submit,
    standalone_cluster,
    standalone_worker,
)
from tests.oracle import INVARIANCE_TOLERANCE, assert_close
from tests.tables import rows_of, table_of
from tests.trace import Trace

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def master(trace_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a cluster whose workers inherit where to write their trace."""
    with standalone_cluster(tmp_path_factory.mktemp("cluster"), workers=2, cores=1) as url:
        yield url


def test_the_cluster_gives_the_vectors_of_local_mode_and_uses_both_workers(
    master: str,
    run_job: Callable[..., Any],
    job_file: Callable[..., str],
    texts: tuple[str, ...],
    tmp_path: Path,
    model: str,
    trace_directory: Path,
) -> None:
    some = texts[:200]
    pq.write_table(pa.table({"id": range(len(some)), "body": some}), tmp_path / "docs.parquet")
    job: dict[str, dict[str, Any]] = {
        "input": {"path": str(tmp_path / "docs.parquet")},
        "embed": {"text": "body", "role": "passage"},
        "model": {"name": model},
        "output": {"path": str(tmp_path / "local")},
        "run": {"partitions": 8},
    }
    local = run_job(**job)
    assert local.code == 0

    trace = Trace(trace_directory)
    # Otherwise the first executor may be done before the second one has started.
    both = ["--conf", "spark.scheduler.minRegisteredResourcesRatio=1.0", "--total-executor-cores=2"]
    script = str(REPOSITORY / "jobs" / "embed.py")
    out = f"output.path={tmp_path / 'cluster'}"
    completed = spark_submit(
        ["--master", master, "--executor-memory=1g", *both, script, job_file(**job), "--set", out]
    )
    assert completed.returncode == 0, completed.stderr + completed.stdout
    document = json.loads(completed.stdout.splitlines()[-1])
    assert document["ok"] == local.document["ok"] == len(some)
    assert document["fingerprint"] == local.document["fingerprint"]
    assert trace.rows() == len(some)
    # Each executor has one core, so two Python workers are two executors.
    assert len({event["pid"] for event in trace.events("window")}) == 2
    assert len(trace.events("load")) == 2
    actual, expected = vectors(tmp_path / "cluster"), vectors(tmp_path / "local")
    assert_close(actual, expected, INVARIANCE_TOLERANCE)


def test_a_task_that_is_tried_again_embeds_all_rows_but_the_killers(
    master: str,
    job_file: Callable[..., str],
    tmp_path: Path,
    model: str,
) -> None:
    rows = {number: f"text number {number} " * (1 + number % 9) for number in range(60)}
    deadly = {5: killers.SIGKILL, 50: killers.SEGFAULT}
    pq.write_table(table_of({**rows, **deadly}), tmp_path / "docs.parquet")
    job: dict[str, dict[str, Any]] = {
        "input": {"path": str(tmp_path / "docs.parquet"), "id": "id"},
        "embed": {"text": "body", "role": "passage"},
        "model": {"name": model, "engine": "openvino"},
        "output": {"path": str(tmp_path / "out")},
        "run": {"partitions": 2, "max_error_rate": 0.5},
    }
    path = python_path(killers.arm(tmp_path))
    script = str(REPOSITORY / "jobs" / "embed.py")
    confs = ["--conf", f"spark.executorEnv.PYTHONPATH={path}", "--executor-memory=1g"]
    completed = spark_submit(["--master", master, *confs, script, job_file(**job)])
    assert completed.returncode == 0, completed.stderr + completed.stdout
    assert json.loads(completed.stdout.splitlines()[-1])["ok"] == 58
    assert "embedded again" not in completed.stderr  # the job was run once
    errors = {row["id"]: row["error"] for row in rows_of(tmp_path / "out") if row["error"]}
    assert errors == {
        5: "The worker process died: signal 9; perhaps out of memory.",
        50: "The worker process died: signal 11.",
    }


def test_the_doctor_names_the_executor_whose_python_differs(
    master: str, job_file: Callable[..., str], tmp_path: Path, model: str
) -> None:
    """A third worker has another major release of pyarrow, and no e5spark that can be imported."""
    pq.write_table(pa.table({"id": [1], "body": ["One."]}), tmp_path / "docs.parquet")
    odd = tmp_path / "odd"
    (odd / "pyarrow-1.0.0.dist-info").mkdir(parents=True)
    (odd / "pyarrow-1.0.0.dist-info" / "METADATA").write_text("Name: pyarrow\nVersion: 1.0.0\n")
    (odd / "e5spark.py").write_text("raise ModuleNotFoundError(\"No module named 'e5spark'\")")
    job = job_file(
        input={"path": str(tmp_path / "docs.parquet")},
        embed={"text": "body", "role": "passage"},
        model={"name": model},
        output={"path": str(tmp_path / "out")},
    )
    script = str(REPOSITORY / "jobs" / "run.py")
    env = {"PYTHONPATH": python_path(str(odd))}
    with standalone_worker(tmp_path / "worker", master, env=env) as worker:
        worker.wait_for(REGISTERED)
        completed = spark_submit(
            [
                "--master",
                master,
                "--executor-memory=1g",
                "--executor-cores=1",
                script,
                "doctor",
                job,
            ]
        )
    assert completed.returncode == 2, completed.stderr + completed.stdout
    document = json.loads(completed.stdout.splitlines()[-1])
    assert (document["executors_answered"], document["executors_registered"]) == (3, 3)
    assert [finding["check"] for finding in document["findings"]] == ["packages", "pyarrow"]
    assert len({finding["where"] for finding in document["findings"]}) == 1
    assert [report.get("engine") for report in document["executors"]].count("openvino") == 2
    assert not (tmp_path / "out").exists()


def test_with_the_gpu_profile_a_worker_takes_the_gpu_of_its_task(
    monkeypatch: pytest.MonkeyPatch,
    job_file: Callable[..., str],
    tmp_path: Path,
    model: str,
) -> None:
    """The GPU does not exist, so torch stops the run and names the device that it was given."""
    pq.write_table(pa.table({"id": [1], "body": ["One."]}), tmp_path / "docs.parquet")
    discovery = tmp_path / "gpus.sh"
    discovery.write_text("""echo '{"name": "gpu", "addresses": ["97"]}'""")
    discovery.chmod(0o755)
    resource = "-Dspark.worker.resource.gpu"
    monkeypatch.setenv(
        "SPARK_WORKER_OPTS", f"{resource}.amount=1 {resource}.discoveryScript={discovery}"
    )
    job: dict[str, dict[str, Any]] = {
        "input": {"path": str(tmp_path / "docs.parquet")},
        "embed": {"text": "body", "role": "passage"},
        "model": {"name": model},
        "output": {"path": str(tmp_path / "out")},
    }
    profile = str(REPOSITORY / "conf" / "spark-gpu.conf")
    small = ["executor.cores=1", "task.cpus=1", "executor.memory=1g", "task.maxFailures=1"]
    confs = [f"--conf=spark.{setting}" for setting in small]
    script = str(REPOSITORY / "jobs" / "embed.py")
    with standalone_cluster(tmp_path / "cluster", workers=1) as url:
        completed = spark_submit(
            ["--master", url, "--properties-file", profile, *confs, script, job_file(**job)]
        )
    assert completed.returncode == 2, completed.stderr + completed.stdout
    assert "device is 'cuda:97', but" in completed.stderr


def vectors(path: Path) -> np.ndarray:
    table = pq.read_table(path).sort_by("id")
    return np.array(table["embedding"].to_pylist(), np.float32)
