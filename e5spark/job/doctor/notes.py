"""The findings of steps that fail: errors of e5spark and of Spark, and the jars that they miss."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from e5spark.errors import E5SparkError
from e5spark.job.doctor.finding import Finding, of_message
from e5spark.tables.spark_errors import reason, translated

# Hadoop's file systems that no Spark release carries, and the jar that has them.
_JARS = {
    "org.apache.hadoop.fs.s3a": "org.apache.hadoop:hadoop-aws:{hadoop}",
    "org.apache.hadoop.fs.azurebfs": "org.apache.hadoop:hadoop-azure:{hadoop}",
    "com.google.cloud.hadoop.fs": "com.google.cloud.bigdataoss:gcs-connector:hadoop3-2.2.26",
}
_NO_CLASS = re.compile(r"Class(?:NotFoundException:)?(?: Class)? ([\w.]+) not found")
_NO_SCHEME = re.compile(r'No FileSystem for scheme "?(\w+)"?')


@dataclass(frozen=True)
class Notes:
    """Findings, and what could not be looked at, of the steps so far."""

    findings: list[Finding] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    @contextmanager
    def step(
        self, check: str, where: str, session: Mapping[str, str] | None = None
    ) -> Iterator[None]:
        """Records the error that ends a step."""
        try:
            yield
        except Exception as error:  # a doctor goes on
            self.findings.append(_of_error(check, where, error, session or {}))


def _of_error(check: str, where: str, error: Exception, session: Mapping[str, str]) -> Finding:
    known = (
        error
        if isinstance(error, E5SparkError)
        else translated(error, f"The {check} cannot be used")
    )
    message = str(known) if known else f"The {check} cannot be used: {reason(error)}"
    missing, scheme = _NO_CLASS.search(message), _NO_SCHEME.search(message)
    if missing:
        packages = (jar for package, jar in _JARS.items() if missing[1].startswith(package))
        jar = next(packages, "").format(hadoop=session.get("hadoop") or "VERSION")
        return Finding(
            check="jars",
            where=where,
            found=f"The {check} needs the class {missing[1]}, which the session does not have.",
            fix=f"Add to spark-submit: --packages {jar}" if jar else "Add its jar with --packages.",
        )
    if scheme:
        more = " Write s3a:// for s3://." if scheme[1] in ("s3", "s3n") else ""
        return Finding(
            check="jars",
            where=where,
            found=f"The {check} is on {scheme[1]}://, which the session does not know.",
            fix=f"Add the jar of that file system with --packages.{more}",
        )
    if "this session has no Delta" in message:
        found, _, fix = message.partition(" Add to spark-submit: ")
        fix = f"Add to spark-submit: {fix}"
        return Finding(check="jars", where=where, found=found, fix=fix)
    return of_message(check, where, message)
