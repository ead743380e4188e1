"""Real Spark processes on loopback, from the pyspark that is installed: clusters, Connect, submit.

Every process gets a free port, runs in its own process group and is killed when its context ends.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pyspark

REPOSITORY = Path(__file__).resolve().parent.parent
SPARK_HOME = Path(pyspark.__file__).parent
LOOPBACK = "127.0.0.1"
START_SECONDS = 90
STOP_SECONDS = 15
LOG_TAIL = 8000
REGISTERED = r"(Successfully registered with master)"


@contextmanager
def standalone_cluster(
    log_dir: Path,
    *,
    workers: int = 2,
    cores: int = 1,
    memory: str = "1g",
    env: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """A standalone master and its workers, which have `env`; gives the master's spark:// URL."""
    with ExitStack() as stack:
        url = stack.enter_context(standalone_master(log_dir / "master"))
        started = [
            stack.enter_context(
                standalone_worker(
                    log_dir / f"worker-{number}", url, cores=cores, memory=memory, env=env
                )
            )
            for number in range(workers)
        ]
        for worker in started:
            worker.wait_for(REGISTERED)
        yield url


@contextmanager
def standalone_master(directory: Path) -> Iterator[str]:
    """A standalone master without workers; gives its spark:// URL."""
    with _daemon("master.Master", directory) as master:
        yield master.wait_for(r"Starting Spark master at (spark://\S+)")


@contextmanager
def standalone_worker(
    directory: Path,
    url: str,
    *,
    cores: int = 1,
    memory: str = "1g",
    host: str = LOOPBACK,
    env: Mapping[str, str] | None = None,
) -> Iterator["Running"]:
    """A worker of a master; it has started, and its log has ``REGISTERED`` once it is one.

    Its executors inherit `env`.
    """
    arguments = ["--cores", str(cores), "--memory", memory, url]
    with _daemon("worker.Worker", directory, *arguments, host=host, env=env) as worker:
        yield worker


@contextmanager
def connect_server(log_dir: Path, *arguments: str) -> Iterator[str]:
    """A Spark Connect server on local[2]; `arguments` go to spark-submit; gives its sc:// URL."""
    service = "org.apache.spark.sql.connect.service.SparkConnectServer"
    settings = {
        "spark.connect.grpc.binding.address": LOOPBACK,
        "spark.connect.grpc.binding.port": "0",
        "spark.ui.enabled": "false",
    }
    confs = [part for key, value in settings.items() for part in ("--conf", f"{key}={value}")]
    command = ["--master", "local[2]", *confs, *arguments, "--class", service, "spark-internal"]
    with _running([_bin("spark-submit"), *command], log_dir) as server:
        port = server.wait_for(r"Spark Connect server started at: \S*:(\d+)")
        yield f"sc://{LOOPBACK}:{port}"


def spark_submit(
    arguments: list[str], *, env: Mapping[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run spark-submit to its end; a run past `timeout` is killed, with the driver it started."""
    with subprocess.Popen(
        [_bin("spark-submit"), *arguments],
        env=_environment() | dict(env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        finally:
            _kill_group(process)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


class Running:
    """A process and the log that it writes."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    def wait_for(self, pattern: str) -> str:
        """The pattern's first group, once the log has it; an error with the log's end otherwise."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            ended = self.process.poll() is not None
            text = self.log.read_text(errors="replace")
            if match := re.search(pattern, text):
                return match[1]
            if ended:
                break
            time.sleep(0.1)
        state = "has ended" if ended else f"was not ready in {START_SECONDS} s"
        raise RuntimeError(f"{self.log} {state}; its log ends:\n{text[-LOG_TAIL:]}")


@contextmanager
def _daemon(
    kind: str,
    directory: Path,
    *arguments: str,
    host: str = LOOPBACK,
    env: Mapping[str, str] | None = None,
) -> Iterator[Running]:
    ports = ["--host", host, "--port", "0", "--webui-port", "0"]
    command = [_bin("spark-class"), f"org.apache.spark.deploy.{kind}", *ports, *arguments]
    with _running(command, directory, host=host, env=env) as running:
        yield running


@contextmanager
def _running(
    command: list[str],
    directory: Path,
    *,
    host: str = LOOPBACK,
    env: Mapping[str, str] | None = None,
) -> Iterator[Running]:
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "log.txt"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=_environment() | _places(directory) | {"SPARK_LOCAL_IP": host} | dict(env or {}),
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Running(process, log)
    finally:
        _stop(process)


def _bin(name: str) -> str:
    return str(SPARK_HOME / "bin" / name)


def python_path(*directories: str) -> str:
    """A PYTHONPATH of directories, e5spark and tests, and what the caller's own names, if any."""
    return os.pathsep.join(
        [*directories, str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    )


def _environment() -> dict[str, str]:
    return dict(os.environ) | {
        "SPARK_HOME": str(SPARK_HOME),
        "SPARK_LOCAL_IP": LOOPBACK,
        "SPARK_DAEMON_MEMORY": "512m",
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        # The workers must find e5spark and tests, whether or not the package is installed.
        "PYTHONPATH": python_path(),
    }


def _places(directory: Path) -> dict[str, str]:
    return {
        "SPARK_LOG_DIR": str(directory),
        "SPARK_WORKER_DIR": str(directory / "work"),
        "SPARK_LOCAL_DIRS": str(directory / "local"),
    }


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask first: a worker that is told to stop takes its executors with it."""
    _signal_group(process, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    _kill_group(process)


def _kill_group(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    _signal_group(process, signal.SIGKILL)
    process.wait(STOP_SECONDS)


def _signal_group(
    process: subprocess.Popen[bytes] | subprocess.Popen[str], number: signal.Signals
) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
