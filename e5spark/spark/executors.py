"""The executors of a session, as a driver sees them now."""

import math
import re
from dataclasses import dataclass

from pyspark.errors import PySparkAttributeError
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

_LOCAL = re.compile(r"local(\[|$)")


@dataclass(frozen=True, kw_only=True)
class Executors:
    """The executors of a session.

    Attributes:
        count: How many there are; 1 on a local master.
        cores: Their cores.
        slots: Tasks that run at once.
        dynamic: Whether Spark adds and removes executors as a run needs them.
    """

    count: int
    cores: int
    slots: int
    dynamic: bool


def executors(spark: SparkSession) -> Executors:
    """Returns the executors of a session.

    Their number comes from the status of a classic session; over Spark Connect, from the cores and
    ``spark.executor.cores``.
    """
    cores = total_cores(spark)
    return Executors(
        count=_count(spark, cores),
        cores=cores,
        slots=_slots(spark, cores),
        dynamic=spark.conf.get("spark.dynamicAllocation.enabled", "false") == "true",
    )


def task_slots(spark: SparkSession) -> int:
    """Returns how many tasks run at once."""
    return _slots(spark, total_cores(spark))


def total_cores(spark: SparkSession) -> int:
    """Returns the cores of all executors."""
    # Spark cuts a range into as many parts as there are cores now; Connect offers no other way.
    parts = spark.range(1 << 20).select(F.spark_partition_id().alias("part"))
    return parts.distinct().count()


def registered_executors(spark: SparkSession) -> int | None:
    """Returns how many executors a classic session has now; None over Spark Connect.

    The driver of a local master counts as one.
    """
    try:
        # The one place that needs a classic session; the driver is in this map, too.
        context = spark._jsparkSession.sparkContext()
    except PySparkAttributeError:
        return None
    managers = int(context.getExecutorMemoryStatus().size())
    return managers if context.isLocal() else managers - 1


def _slots(spark: SparkSession, cores: int) -> int:
    return max(1, cores // int(str(spark.conf.get("spark.task.cpus", "1"))))


def _count(spark: SparkSession, cores: int) -> int:
    if _LOCAL.match(str(spark.conf.get("spark.master", ""))):
        return 1
    known = registered_executors(spark)
    if known:
        return known
    each = int(str(spark.conf.get("spark.executor.cores", "1")))
    return max(1, math.ceil(cores / each))
