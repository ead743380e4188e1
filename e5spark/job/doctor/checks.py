"""All checks: functions from reports to findings, which touch neither Spark nor a file."""

from e5spark.job.doctor import machine_checks, python_checks, session_checks
from e5spark.job.doctor.facts import Facts
from e5spark.job.doctor.finding import Finding


def findings(facts: Facts) -> list[Finding]:
    """Returns all that the checks find, in the order of the checks."""
    checks = (*session_checks.CHECKS, *python_checks.CHECKS, *machine_checks.CHECKS)
    return [finding for check in checks for finding in check(facts)]
