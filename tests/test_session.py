"""The session of a command: one worker with all cores on one machine, unless told otherwise."""

import os

import pytest

from e5spark import cpus
from e5spark.job.jvm import short_start
from e5spark.job.session import one_machine

LOG_TASKS = "spark.databricks.delta.snapshotPartitions"


@pytest.mark.parametrize("master", ["local[3]", "local[7]"])
def test_a_local_session_runs_one_worker_with_all_cores(master: str) -> None:
    cores = master[6:-1]
    settings = one_machine({"spark.master": master})
    assert (settings["spark.master"], settings["spark.task.cpus"]) == (master, cores)


@pytest.mark.parametrize("settings", [{}, {"spark.master": "local[*]"}])
def test_all_cores_are_those_that_the_process_may_use(settings: dict[str, str]) -> None:
    cores = str(cpus.available_cpus())
    chosen = one_machine(settings)
    assert (chosen["spark.master"], chosen["spark.task.cpus"]) == (f"local[{cores}]", cores)


def test_a_local_session_reads_deltas_log_in_two_tasks() -> None:
    assert one_machine({})[LOG_TASKS] == "2"
    assert one_machine({"spark.master": "local[4]", "spark.task.cpus": "1"}) == {LOG_TASKS: "2"}


@pytest.mark.parametrize(
    "settings",
    [
        {"spark.master": "local[4]", "spark.task.cpus": "1", LOG_TASKS: "50"},
        {"spark.master": "local"},
        {"spark.master": "local-cluster[2,1,1024]"},
        {"spark.master": "spark://host:7077"},
        {"spark.master": "yarn"},
        {"spark.remote": "sc://host"},
    ],
)
def test_what_was_set_and_clusters_are_left_alone(settings: dict[str, str]) -> None:
    assert one_machine(settings) == {}


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 1), ("50000 100000", 1), ("", 8)],
)
def test_a_containers_quota_counts(tmp_path, monkeypatch, quota: str, expected: int) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(cpus, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(cpus.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert cpus.available_cpus() == expected


def test_the_jvm_gets_options_for_a_short_run_before_the_users_own(monkeypatch) -> None:
    monkeypatch.setenv("SPARK_SUBMIT_OPTS", "-XX:Tier4CompileThreshold=1 -Xlog:gc")
    monkeypatch.delenv("SPARK_LAUNCHER_OPTS", raising=False)
    before = dict(os.environ)
    with short_start():
        submitted = os.environ["SPARK_SUBMIT_OPTS"].split()
        assert "SPARK_LAUNCHER_OPTS" in os.environ
    # The JVM takes the last of two values of an option.
    assert submitted[-2:] == ["-XX:Tier4CompileThreshold=1", "-Xlog:gc"]
    assert "-XX:Tier4CompileThreshold=150000" in submitted
    assert dict(os.environ) == before
