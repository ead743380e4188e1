"""The Spark session of a command: the running one, or a new one."""

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from subprocess import TimeoutExpired
from typing import Any

from py4j.protocol import Py4JNetworkError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from e5spark.cpus import available_cpus
from e5spark.errors import ConfigError, E5SparkError, TransientError
from e5spark.job.config import JobConfig, ModelConfig
from e5spark.job.interrupt import cancelled_when_interrupted
from e5spark.job.jvm import LARGE_MODEL, heap_bytes, is_verbose, started_here
from e5spark.limits import memory_ceilings
from e5spark.model.checkpoint import locate
from e5spark.model.footprint import footprint
from e5spark.model.spec import model_spec
from e5spark.tables import delta_session as delta
from e5spark.tables.spark_errors import condition, no_heap, reason

_LOCAL = re.compile(r"local\[(\*|\d+)\]")
_ENGINES = ("openvino", "torch")
# Spark ends a JVM with this code when its heap is full.
_OUT_OF_MEMORY, _SECONDS = 52, 5.0
_FIXED = {"CANNOT_MODIFY_CONFIG", "CANNOT_MODIFY_STATIC_CONFIG"}


def session(job_config: JobConfig) -> AbstractContextManager[SparkSession]:
    """Returns the session of a job; see ``open_session``."""
    formats = (job_config.input.format, job_config.output.format)
    return open_session(job_config.spark, formats=formats, model=job_config.model)


@contextmanager
def open_session(
    requested: Mapping[str, str],
    *,
    formats: Iterable[str] = (),
    model: ModelConfig | None = None,
) -> Iterator[SparkSession]:
    """Yields the running session, which stays, or a new one, which is stopped afterwards.

    Args:
        requested: Settings of Spark.
        formats: The formats of the tables that are used; ``delta`` needs jars.
        model: The model that workers load, for the memory that it leaves to a JVM started here.

    Raises:
        ConfigError: If Spark refuses a setting, or Java is missing.
    """
    running = SparkSession.getActiveSession()
    settings = {key: str(value) for key, value in requested.items()}
    starts_jvm = running is None and "PYSPARK_GATEWAY_PORT" not in os.environ
    if starts_jvm:
        # Without spark-submit the JVM starts here, so workers run this interpreter and Delta can
        # still be added. (spark-submit resolves packages before any Python runs.)
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        if "delta" in formats:
            settings = {**delta.session_settings(), **settings}
        if not is_verbose():
            settings = {"spark.ui.showConsoleProgress": "false", **settings}
    if running is None:
        settings = {**settings, **one_machine({**_submitted(), **settings})}
    builder = SparkSession.builder.appName("e5spark")
    for key, value in settings.items():
        builder = builder.config(key, value)
    try:
        with started_here(heap=_heap(model)) if starts_jvm else nullcontext():
            spark = builder.getOrCreate()
    except Exception as error:  # py4j has errors that PySpark does not wrap
        raise _refusal(error) from error
    try:
        with cancelled_when_interrupted(spark):
            _check_settings(spark, requested)
            yield spark
    finally:
        if running is None:
            with suppress(ConnectionError, Py4JNetworkError):  # no JVM is left to stop
                spark.stop()


def lost_jvm(error: BaseException) -> E5SparkError | None:
    """Returns the error to raise if Spark's Java process is gone; None for any other error."""
    cause: BaseException | None = error
    while cause is not None:
        # An e5spark error about the hub or a store may have a ConnectionError as its cause.
        if isinstance(cause, Py4JNetworkError) or (
            isinstance(cause, ConnectionError) and not isinstance(error, E5SparkError)
        ):
            if _exit_code() == _OUT_OF_MEMORY:
                return no_heap("The run stopped")
            return TransientError(
                "Spark's Java process on this machine has ended: it was stopped or killed, for "
                "example for lack of memory (see spark.driver.memory). Committed rows are safe; "
                "start the same command again."
            )
        cause = cause.__cause__ or cause.__context__
    return None


def _exit_code() -> int | None:
    """Returns the exit code of the JVM that PySpark has started; None if there is none."""
    from pyspark import SparkContext

    process: Any = getattr(SparkContext._gateway, "proc", None)
    with suppress(AttributeError, TimeoutExpired):  # it is not ours, or it hangs
        return int(process.wait(timeout=_SECONDS))
    return None


def one_machine(settings: Mapping[str, str]) -> dict[str, str]:
    """Returns the settings that Spark needs on one machine, without those that the session has.

    One worker has all cores: it is as fast as one for each core, and takes the memory of one
    model. On a cluster the settings of conf/spark-cluster.conf do the same. Delta reads its log in
    two tasks.

    Args:
        settings: The session's settings, as far as they are known. If its master is a cluster, none
            is returned.
    """
    local = _LOCAL.fullmatch(settings.get("spark.master", "local[*]"))
    remote = "spark.remote" in settings or "SPARK_REMOTE" in os.environ
    if local is None or remote:
        return {}
    result = {key: value for key, value in delta.ONE_MACHINE.items() if key not in settings}
    if "spark.task.cpus" not in settings:
        cores = str(available_cpus()) if local[1] == "*" else local[1]
        result |= {"spark.master": f"local[{cores}]", "spark.task.cpus": cores}
    return result


def _heap(model: ModelConfig | None) -> int | None:
    """Returns the heap of a JVM that starts here, beside a worker with the model."""
    size = LARGE_MODEL
    if model is not None:
        with suppress(Exception):  # the command itself says what is wrong with the model
            files = locate(model_spec(model.name, {**model.options, "download": False}))
            sizes = [footprint(files, engine=name, precision="fp32") for name in _ENGINES]
            size = max(needs.usual["resident"] for needs in sizes)
    return heap_bytes(memory_ceilings(), model=size)


def _submitted() -> dict[str, str]:
    """Returns the settings that spark-submit has."""
    if "PYSPARK_GATEWAY_PORT" not in os.environ:
        return {}
    from pyspark import SparkConf, SparkContext

    SparkContext._ensure_initialized()  # connects to the JVM
    return dict(SparkConf().getAll())


def _refusal(error: Exception) -> E5SparkError:
    if isinstance(error, PySparkException) and condition(error) == "JAVA_GATEWAY_EXITED":
        home = os.environ.get("JAVA_HOME")
        setting = f"JAVA_HOME is {home!r}" if home else "JAVA_HOME is not set"
        return ConfigError(
            f"Spark's Java process did not start; {setting}. e5spark needs Java 17 or 21: install "
            "one and set JAVA_HOME to its directory."
        )
    return lost_jvm(error) or ConfigError(
        f"Spark does not start with these settings: {reason(error)} Correct [spark] in the job "
        "file, or the options of spark-submit."
    )


def _check_settings(spark: SparkSession, settings: Mapping[str, str]) -> None:
    """Checks the values of settings of Spark SQL, which Spark checks when a query needs them.

    Raises:
        ConfigError: If Spark refuses a value.
    """
    for key, value in settings.items():
        if not key.startswith("spark.sql."):
            continue
        try:
            spark.conf.set(key, value)
        except Exception as error:  # py4j has errors that PySpark does not wrap
            if condition(error).split(".")[0] in _FIXED:
                continue
            raise ConfigError(f"[spark] {key} cannot be {value!r}: {reason(error)}") from error
