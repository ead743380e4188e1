"""The session of a command: one worker with all cores on one machine, unless told otherwise."""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from py4j.protocol import Py4JNetworkError
from pyspark import SparkContext

from e5spark import cpus
from e5spark.errors import E5SparkError, OptionError, TransientError
from e5spark.job.jvm import heap_bytes, started_here
from e5spark.job.session import lost_jvm, one_machine
from e5spark.limits import MemoryCeiling

THREAD = "e5spark stderr"
LOG_TASKS = "spark.databricks.delta.snapshotPartitions"


@pytest.fixture
def verbose() -> Iterator[None]:
    """As with -v."""
    log = logging.getLogger("e5spark")
    before = log.level
    log.setLevel(logging.DEBUG)
    yield
    log.setLevel(before)


def join(name: str) -> None:
    """Waits for the threads of a name."""
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join(60)


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
    with started_here():
        submitted = os.environ["SPARK_SUBMIT_OPTS"].split()
        assert "SPARK_LAUNCHER_OPTS" in os.environ
    # The JVM takes the last of two values of an option.
    assert submitted[-2:] == ["-XX:Tier4CompileThreshold=1", "-Xlog:gc"]
    assert "-XX:Tier4CompileThreshold=150000" in submitted
    assert dict(os.environ) == before


def test_a_jvm_that_starts_says_nothing_and_is_heard_afterwards(capfd) -> None:
    def jvm(*lines: str) -> None:
        os.write(stderr, "".join(f"{line}\n" for line in lines).encode())

    with started_here():
        stderr = os.dup(2)
        jvm("WARNING: Using incubator modules", ":: resolving dependencies ::")
    jvm("WARNING: sun.misc.Unsafe", "Fatal Python error: Segmentation fault")
    os.close(stderr)  # the last end that writes: the rest is passed on
    join(THREAD)
    assert capfd.readouterr().err == "Fatal Python error: Segmentation fault\n"


def test_a_jvm_that_does_not_start_shows_its_last_lines_without_a_stack(capfd) -> None:
    lines = "WARNING: x\n:: unresolved dependency: io.delta\n\tat java.base/Thread.run\n"

    def start() -> None:
        with started_here():
            os.write(2, lines.encode())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        start()
    join(THREAD)
    assert capfd.readouterr().err == ":: unresolved dependency: io.delta\n"


def test_verbose_shows_everything_and_keeps_spark_s_log(capfd, verbose) -> None:
    with started_here():
        os.write(2, b"WARNING: Using incubator modules\n")
        assert "log4j2.configurationFile" not in os.environ["SPARK_SUBMIT_OPTS"]
    assert capfd.readouterr().err == "WARNING: Using incubator modules\n"


def test_the_users_log_configuration_stays(tmp_path, monkeypatch) -> None:
    with started_here():
        assert "log4j2.configurationFile=file:" in os.environ["SPARK_SUBMIT_OPTS"]
    (tmp_path / "log4j2.properties").write_text("rootLogger.level = info")
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
    with started_here():
        assert "log4j2.configurationFile" not in os.environ["SPARK_SUBMIT_OPTS"]


@pytest.mark.parametrize(
    ("gigabytes", "used", "model", "expected"),
    [(24, 4, 1, 8.0), (16, 4, 2, 5.0), (8, 2, 1, 2.5), (4, 1, 1, None), (2, 1, 4, None)],
)
def test_the_heap_is_half_of_what_the_machine_has_beside_the_model(
    gigabytes: int, used: int, model: int, expected: float | None
) -> None:
    machine = MemoryCeiling(
        kind="resident", bytes=gigabytes << 30, others=used << 30, source="the machine's memory"
    )
    # An address space limits Python, and not the JVM.
    limits = [machine, MemoryCeiling(kind="address_space", bytes=1 << 30, source="ulimit -v")]
    size = heap_bytes(limits, model=model << 30)
    assert size == (None if expected is None else int(expected * (1 << 30)))
    assert heap_bytes(limits[1:]) is None


@pytest.mark.parametrize(("code", "kind"), [(52, OptionError), (1, TransientError)])
def test_a_jvm_that_ended_with_a_full_heap_is_told_from_one_that_was_killed(
    monkeypatch, code: int, kind: type[E5SparkError]
) -> None:
    class Gateway:
        proc = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"])

    monkeypatch.setattr(SparkContext, "_gateway", Gateway)
    error = lost_jvm(Py4JNetworkError("Answer from Java side is empty"))
    assert type(error) is kind
    assert "spark.driver.memory" in str(error)


def test_the_users_memory_wins(monkeypatch) -> None:
    with started_here(heap=3 << 30):
        assert os.environ["SPARK_DRIVER_MEMORY"] == "3072m"
    # Spark reads this variable only where no setting and no option says spark.driver.memory.
    monkeypatch.setenv("SPARK_DRIVER_MEMORY", "1g")
    with started_here(heap=3 << 30):
        assert os.environ["SPARK_DRIVER_MEMORY"] == "1g"
