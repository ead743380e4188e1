"""A process whose Spark session has Delta; what the tests call in it, and what they read back."""

import contextlib
import io
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from e5spark.cli import main
from e5spark.tables import delta_session as delta
from tests.frames import to_arrow

# A JVM that lives for a few small jobs gains nothing from the compiler that optimizes.
SHORT_LIVED = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
# By default, each transaction has 50 partitions for the table's log and 200 for a join.
SMALL_TABLES = {
    "spark.databricks.delta.snapshotPartitions": "2",
    "spark.sql.shuffle.partitions": "2",
    "spark.driver.extraJavaOptions": SHORT_LIVED,
}
SETTINGS = {
    **delta.session_settings(),
    **SMALL_TABLES,
    "spark.log.level": "ERROR",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}

# deltalake may abort when its process ends, after its work is done; so it gets a process.
_READ = """
import sys, deltalake, pyarrow.parquet
table = deltalake.DeltaTable(sys.argv[1]).to_pyarrow_table()
pyarrow.parquet.write_table(table, sys.argv[2])
"""


@dataclass(frozen=True)
class Ended:
    """How a job ended: its exit code, its last line, and its log."""

    code: int
    document: Mapping[str, Any]
    log: str


class Driver:
    """Calls functions in a process of its own, which a test may kill: the next call starts another.

    A process, because the session of the other tests has no Delta, and a Spark process cannot have
    both classic sessions and Connect sessions.
    """

    def __init__(self, start: Callable[..., None], *arguments: Any) -> None:
        self._start, self._arguments = start, arguments
        self._pool: ProcessPoolExecutor | None = None

    def __call__(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                1,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=self._start,
                initargs=self._arguments,
            )
        try:
            return self._pool.submit(_call, function, arguments, named).result()
        except BrokenProcessPool:
            self._pool.shutdown()
            self._pool = None
            raise

    def job(self, file: str, *overrides: str, crash: str = "", command: str = "embed") -> Ended:
        """Run `e5spark embed`, or another command of a job file."""
        return self(
            run_job, [command, file, *(f"--set={override}" for override in overrides)], crash
        )

    def killed(self, file: str, *overrides: str, at: str) -> None:
        """Run it until it kills itself at a failpoint."""
        with contextlib.suppress(BrokenProcessPool):
            outcome = self.job(file, *overrides, crash=at)
            raise AssertionError(f"the job was not killed at {at}: {outcome}")

    def sql(self, query: str) -> list[dict[str, Any]]:
        """The rows of a query."""
        return self(run_sql, query)

    def close(self) -> None:
        """Stop the session and end the process."""
        if self._pool is not None:
            self._pool.submit(_stop).result()
            self._pool.shutdown()

    def kill(self) -> None:
        """End the process, whatever state it is in, and its JVM with it."""
        if self._pool is not None:
            with contextlib.suppress(BrokenProcessPool):
                self(_die)


def start_classic(
    warehouse: str, master: str = "local[2]", settings: Mapping[str, str] | None = None
) -> None:
    """A session of a master, or on local[2]; its catalog is in memory."""
    os.environ |= {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    os.environ.pop("SPARK_HOME", None)
    builder = SparkSession.builder.master(master).appName("e5spark Delta tests")
    place = {"spark.sql.warehouse.dir": warehouse}
    builder.config(map={**SETTINGS, **place, **(settings or {})}).getOrCreate()


def start_connect(url: str) -> None:
    """A session of a Connect server."""
    os.environ["SPARK_REMOTE"] = url
    SparkSession.builder.getOrCreate()


def session() -> SparkSession:
    return SparkSession.builder.getOrCreate()


def run_job(arguments: list[str], crash: str) -> Ended:
    os.environ["E5SPARK_FAILPOINT"] = crash
    out, lines = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(lines)
    logging.getLogger("e5spark").addHandler(handler)
    try:
        with contextlib.redirect_stdout(out):
            code = main(arguments)
    finally:
        logging.getLogger("e5spark").removeHandler(handler)
    return Ended(code, json.loads(out.getvalue().splitlines()[-1]), lines.getvalue())


def run_sql(query: str) -> list[dict[str, Any]]:
    return to_arrow(session().sql(query)).to_pylist()


def delta_rs(path: str | Path, scratch: Path) -> pa.Table:
    """The table as delta-rs reads it."""
    out = scratch / "delta_rs.parquet"
    out.unlink(missing_ok=True)
    subprocess.run([sys.executable, "-c", _READ, str(path), str(out)], timeout=60, check=False)
    return pq.read_table(out)


def actions(path: str | Path, kind: str) -> Iterator[dict[str, Any]]:
    """What a table's log says of one kind, such as `add` or `txn`."""
    for file in sorted((Path(path) / "_delta_log").glob("*.json")):
        for line in file.read_text().splitlines():
            if kind in (action := json.loads(line)):
                yield action[kind]


def is_replacing(out: Path) -> bool:
    """Whether the rows that replace others are recorded and not visible yet."""
    records = (out / "_e5spark/commits").glob("*.json")
    with contextlib.suppress(OSError, ValueError):  # moved, or not written to its end
        return any(json.loads(path.read_text())["kind"] == "replace" for path in records)
    return False


def is_merging(out: Path) -> bool:
    """Whether a MERGE that has been recorded has written files that no commit has yet."""
    if not is_replacing(out):
        return False
    files = {path.name for path in out.glob("part-*.parquet")}
    return bool(files - {action["path"] for action in actions(out, "add")})


def _call(function: Callable[..., Any], arguments: Any, named: Any) -> Any:
    try:
        return function(*arguments, **named)
    except PySparkException as error:  # cannot be unpickled
        raise RuntimeError(f"{type(error).__name__}: {error}") from None


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stop() -> None:
    session().stop()


if __name__ == "__main__":  # fetches the jars
    start_classic("build/warehouse")
    _stop()
