"""A report from each executor of a session."""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from pyspark import cloudpickle
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from e5spark.spark import probe
from e5spark.spark.executors import registered_executors, task_slots

_T = TypeVar("_T")
_TAG = "e5spark-survey"
_HOLD_SECONDS = 0.5
_ROUNDS = 5
_START_SECONDS = 30  # which Spark itself waits for executors at most
# After a job of all tasks has failed, so many jobs of one task say which executors do answer.
_SINGLE_JOBS = 8
# Of Spark's messages: "Lost task 0.3 in stage 1.0 (TID 7) (10.0.0.5 executor 2)".
_LOST_ON = re.compile(r"Lost task [^(]*\(TID \d+\) \((\S+) executor (\S+?)\)")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A task that an executor's Python could not run.

    Attributes:
        text: Spark's error.
        host: Where it ran last; empty if Spark does not say.
        executor: The executor's id.
    """

    text: str
    host: str = ""
    executor: str = ""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What the executors of a session reported.

    Attributes:
        reports: One report of each executor that answered; see ``e5spark.spark.probe``. Each has
            ``workers``, the number of its Python workers that ran at once.
        registered: Executors of the session when the survey ended; None over Spark Connect, which
            does not tell.
        slots: Tasks that run at once; 0 if no executor has run any.
        failures: Tasks that could not run.
        timed_out: Whether tasks were still waiting for an executor at the end.
    """

    reports: tuple[dict[str, Any], ...]
    registered: int | None
    slots: int
    failures: tuple[Failure, ...] = ()
    timed_out: bool = False


def ready_slots(spark: SparkSession, *, patience: float) -> tuple[int, Failure | None]:
    """Waits for executors, and returns how many tasks run at once; 0 if none has run in time.

    Args:
        spark: The session.
        patience: Seconds to wait.
    """
    deadline = time.monotonic() + patience
    _await_executors(spark, deadline)
    slots, failure = _within(deadline, spark, lambda: task_slots(spark))
    return slots or 0, failure


def survey(
    spark: SparkSession, request: Mapping[str, Any], *, slots: int, patience: float
) -> Survey:
    """Returns a report of each executor that can be found.

    Spark offers no way to run a task on a certain executor. So as many tasks as run at once start
    together, and each holds its slot for a moment; this is repeated until no executor is new.
    An executor whose slots other jobs hold all the time is not found: compare ``registered``.

    Args:
        spark: The session.
        request: What to report; see ``e5spark.spark.probe.report``.
        slots: How many tasks run at once.
        patience: Seconds for all of it.
    """
    deadline = time.monotonic() + patience
    reports: dict[str, dict[str, Any]] = {}
    failures: list[Failure] = []
    rows: list[dict[str, Any]] | None = None
    # By value, because an executor may have no e5spark, or another one.
    cloudpickle.register_pickle_by_value(probe)  # type: ignore[no-untyped-call]
    try:
        for number in range(_ROUNDS):
            hold = _HOLD_SECONDS * min(number + 1, 2)
            asked = {**request, "answered": sorted(reports), "hold": hold}
            tasks = max(slots, registered_executors(spark) or 0)
            rows, failure = _within(
                deadline,
                spark,
                lambda: _ask(spark, asked, tasks),  # noqa: B023  # it ends before the next round
            )
            if failure is not None:
                rows, others = _ask_singly(spark, asked, min(tasks, _SINGLE_JOBS), patience / 2)
                failures = _distinct([failure, *others])
            is_new = _merge(reports, rows or [])
            is_local = [report["executor"] for report in reports.values()] == ["driver"]
            all_answered = not is_new and len(reports) >= (registered_executors(spark) or 0)
            if rows is None or failures or is_local or all_answered:
                break
    finally:
        cloudpickle.unregister_pickle_by_value(probe)  # type: ignore[no-untyped-call]
    return Survey(
        reports=_sorted(reports),
        registered=registered_executors(spark),
        slots=slots,
        failures=tuple(failures),
        timed_out=rows is None,
    )


def _await_executors(spark: SparkSession, deadline: float) -> None:
    """Waits until as many executors have registered as the session's settings ask for."""
    expected = int(str(spark.conf.get("spark.executor.instances", "0")))
    deadline = min(deadline, time.monotonic() + _START_SECONDS)
    while (registered_executors(spark) or expected) < expected and time.monotonic() < deadline:
        time.sleep(0.2)


def _ask(spark: SparkSession, request: Mapping[str, Any], tasks: int) -> list[dict[str, Any]]:
    # No Arrow, which an executor may lack, whatever the session's settings are.
    udf = F.udf(probe.task(request), "string", useArrow=False).asNondeterministic()
    rows = spark.range(0, tasks, 1, tasks).select(udf("id").alias("report")).collect()
    return [json.loads(row.report) for row in rows]


def _ask_singly(
    spark: SparkSession, request: Mapping[str, Any], jobs: int, patience: float
) -> tuple[list[dict[str, Any]], list[Failure]]:
    """The reports of jobs of one task each, of which some may fail, and their failures.

    They look at no model: a worker may have ended because of it.
    """
    deadline = time.monotonic() + patience
    light = {**request, "inspect": False}
    with ThreadPoolExecutor(jobs) as pool:
        outcomes = pool.map(
            lambda _: _within(deadline, spark, lambda: _ask(spark, light, 1)), range(jobs)
        )
        pairs = list(outcomes)
    rows = [row for answered, _ in pairs if answered for row in answered]
    return rows, [failure for _, failure in pairs if failure is not None]


def _within(
    deadline: float, spark: SparkSession, action: Callable[[], _T]
) -> tuple[_T | None, Failure | None]:
    """The result of an action of Spark, or why it failed; neither if it takes too long."""
    results: list[_T] = []
    failures: list[Failure] = []

    def act() -> None:
        with suppress(AttributeError):  # a classic session has tags since 4.0
            spark.addTag(_TAG)
        try:
            results.append(action())
        except Exception as error:  # whatever keeps a task from running is what to report
            failures.append(_failure(error))

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(max(0.1, deadline - time.monotonic()))
    if thread.is_alive():
        with suppress(Exception):
            spark.interruptTag(_TAG)
        return None, None
    return (results[0] if results else None), (failures[0] if failures else None)


def _failure(error: Exception) -> Failure:
    text = str(error)
    places = _LOST_ON.findall(text)
    host, executor = places[-1] if places else ("", "")
    return Failure(text=text, host=host, executor=executor)


def _distinct(failures: list[Failure]) -> list[Failure]:
    """One failure for each executor that Spark names, or one without a name."""
    named = {(failure.host, failure.executor): failure for failure in failures if failure.host}
    return list(named.values()) or failures[:1]


def _merge(reports: dict[str, dict[str, Any]], rows: list[dict[str, Any]]) -> bool:
    """Adds the reports of a round; returns whether an executor is new."""
    workers = Counter(key for key, _ in {(row["key"], row["pid"]) for row in rows})
    found = False
    for row in rows:
        report = reports.get(row["key"])
        if report is None:
            report, found = row, True
            reports[row["key"]] = row
        report["workers"] = max(report.get("workers", 0), workers[row["key"]])
    return found


def _sorted(reports: Mapping[str, dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    def order(report: dict[str, Any]) -> tuple[str, int, str]:
        name = str(report["executor"])
        return report["host"], int(name) if name.isdigit() else 0, name

    return tuple(sorted(reports.values(), key=order))
