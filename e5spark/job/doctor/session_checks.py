"""Checks of a session: its versions, and whether its executors answer."""

from collections.abc import Callable, Iterator

from e5spark.job.doctor.facts import Facts, minor
from e5spark.job.doctor.finding import Finding

_JAVA = (17, 21)


def _java(facts: Facts) -> Iterator[Finding]:
    version = facts.session.get("java", "")
    major = version.removeprefix("1.").partition(".")[0]
    if major.isdigit() and int(major) not in _JAVA:
        yield Finding(
            check="java",
            where="session",
            found=f"Spark runs on Java {version}.",
            needed="e5spark needs Java 17 or 21.",
            fix="Install one on every machine, and set JAVA_HOME to it.",
        )


def _spark(facts: Facts) -> Iterator[Finding]:
    client, server = facts.driver["versions"].get("pyspark"), facts.session.get("spark", "")
    if client and server and minor(client) != minor(server):
        yield Finding(
            check="spark",
            where="driver",
            found=f"PySpark is {client}, and the session's Spark is {server}.",
            needed="Both must be of one minor release.",
            fix=f"Run pip install 'pyspark=={minor(server)}.*' on the driver.",
        )


def _delta(facts: Facts) -> Iterator[Finding]:
    version = facts.session.get("delta", "")
    if facts.delta and version and minor(version) != minor(facts.delta):
        yield Finding(
            check="delta",
            level="warning",
            where="session",
            found=f"The session has Delta {version}.",
            needed=f"e5spark is tested with Delta {facts.delta} on this Spark.",
            fix="Take that release if Delta fails with errors of missing classes or methods.",
        )


def _coverage(facts: Facts) -> Iterator[Finding]:
    survey = facts.survey
    if not survey.reports and not survey.failures:
        yield Finding(
            check="executors",
            where="session",
            found=f"No executor ran a task in time; {survey.registered or 0} are registered.",
            fix="Check that the cluster has free cores and memory for spark.executor.cores, "
            "spark.task.cpus and spark.executor.memory, and that executors can reach the driver; "
            "or wait longer with --patience.",
        )
    elif survey.registered is not None and len(survey.reports) < survey.registered:
        missing = survey.registered - len(survey.reports)
        yield Finding(
            check="executors",
            level="warning",
            where="session",
            found=f"{missing} of {survey.registered} executors have not answered.",
            fix="Look for a failure among the other findings, and into the executors' logs in "
            "Spark's UI; or start the doctor again when no other job takes their slots.",
        )


CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (*(_java, _spark, _delta, _coverage),)
