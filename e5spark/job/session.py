"""The Spark session of a command: the one that runs, or a new one."""

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pyspark.sql import SparkSession

from e5spark.cpus import available_cpus
from e5spark.job.config import JobConfig
from e5spark.tables import delta_session as delta

_LOCAL = re.compile(r"local\[(\*|\d+)\]")


@contextmanager
def session(job_config: JobConfig) -> Iterator[SparkSession]:
    """The running session, which stays, or a new one, which is stopped."""
    running = SparkSession.getActiveSession()
    settings = {key: str(value) for key, value in job_config.spark.items()}
    if running is None and "PYSPARK_GATEWAY_PORT" not in os.environ:
        # Without spark-submit the JVM starts here: workers run this interpreter, and Delta can
        # still be had. (spark-submit resolves packages before any Python runs.)
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        if "delta" in (job_config.input.format, job_config.output.format):
            settings = {**delta.session_settings(), **settings}
    if running is None:
        settings = {**settings, **one_worker({**_submitted(), **settings})}
    builder = SparkSession.builder.appName("e5spark")
    for key, value in settings.items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    try:
        yield spark
    finally:
        if running is None:
            spark.stop()


def one_worker(settings: Mapping[str, str]) -> dict[str, str]:
    """Returns what makes a Spark on one machine run one worker with all cores, not one on each.

    It is as fast, and takes the memory of one model and not of many. On a cluster
    conf/spark-cluster.conf says the same.

    Args:
        settings: The session's, as far as they are known; ``spark.task.cpus`` there is followed.
    """
    local = _LOCAL.fullmatch(settings.get("spark.master", "local[*]"))
    remote = "spark.remote" in settings or "SPARK_REMOTE" in os.environ
    if local is None or remote or "spark.task.cpus" in settings:
        return {}
    cores = str(available_cpus()) if local[1] == "*" else local[1]
    return {"spark.master": f"local[{cores}]", "spark.task.cpus": cores}


def _submitted() -> dict[str, str]:
    """What spark-submit was told."""
    if "PYSPARK_GATEWAY_PORT" not in os.environ:
        return {}
    from pyspark import SparkConf, SparkContext

    SparkContext._ensure_initialized()  # connects to the JVM
    return dict(SparkConf().getAll())
