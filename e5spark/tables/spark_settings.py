"""Settings of a session, and descriptions of its jobs, that hold while a block runs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import pyspark
from pyspark import SparkContext, inheritable_thread_target
from pyspark.errors import PySparkAttributeError, PySparkNotImplementedError
from pyspark.sql import SparkSession

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_DESCRIPTION, _GROUP = "spark.job.description", "spark.jobGroup.id"


@contextmanager
def spark_settings(spark: SparkSession, settings: Mapping[str, str]) -> Iterator[None]:
    """Sets the session's settings while the block runs, and then sets them back."""
    before = {key: spark.conf.get(key, None) for key in settings}
    try:
        for key, value in settings.items():
            spark.conf.set(key, value)
        yield
    finally:
        for key, old in before.items():
            if old is None:
                spark.conf.unset(key)
            else:
                spark.conf.set(key, old)


@contextmanager
def described(spark: SparkSession, phase: str) -> Iterator[None]:
    """Says in Spark's UI what this thread's jobs do while the block runs.

    Their description is ``e5spark: find changes``, for example. Jobs that belong to no group get
    the group ``e5spark``. Spark Connect has no descriptions: there the operations get a tag, the
    same words without commas.

    Args:
        spark: The session.
        phase: What the jobs do.
    """
    description = f"e5spark: {phase}"
    context = _context(spark)
    if context is None:
        tag = description.replace(",", "")
        spark.addTag(tag)
        try:
            yield
        finally:
            spark.removeTag(tag)
        return
    before = {key: context.getLocalProperty(key) for key in (_DESCRIPTION, _GROUP)}
    try:
        context.setLocalProperty(_DESCRIPTION, description)
        context.setLocalProperty(_GROUP, before[_GROUP] or "e5spark")
        yield
    finally:
        for key, value in before.items():
            context.setLocalProperty(key, value)  # type: ignore[arg-type]  # None removes it


def inherited(
    spark: SparkSession, function: Callable[Arguments, Result]
) -> Callable[Arguments, Result]:
    """Returns the function for another thread, where its jobs have the properties of this thread's.

    These are the job group, by which they can be cancelled, the scheduler pool, and tags.

    Args:
        spark: The session.
        function: What another thread calls, once.
    """
    takes_function = pyspark.__version__.startswith("3.") and _context(spark) is not None
    decorate: Callable[..., Callable[Arguments, Result]]
    decorate = inheritable_thread_target if takes_function else inheritable_thread_target(spark)
    # Where PYSPARK_PIN_THREAD is off, PySpark returns the session: threads share all properties.
    return function if isinstance(decorate, SparkSession) else decorate(function)


def _context(spark: SparkSession) -> SparkContext | None:
    """The context of a classic session; descriptions have no other API."""
    try:
        return spark.sparkContext
    except (PySparkAttributeError, PySparkNotImplementedError):  # the latter in Spark 3.5
        return None
