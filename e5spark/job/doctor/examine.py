"""The examination of a job, its session and its executors: it goes on after what it finds."""

import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyspark
from pyspark.sql import SparkSession

from e5spark.errors import E5SparkError, ModelError
from e5spark.job import source as sources
from e5spark.job import streaming
from e5spark.job.config import JobConfig
from e5spark.job.doctor.checks import findings
from e5spark.job.doctor.examination import Examination, job_words
from e5spark.job.doctor.facts import Facts
from e5spark.job.doctor.finding import Finding, grouped
from e5spark.job.doctor.notes import Notes
from e5spark.job.run import open_output, plan_output
from e5spark.model.checkpoint import locate
from e5spark.model.engines import ENGINES
from e5spark.model.footprint import Footprint, footprint
from e5spark.model.resolve import Plan
from e5spark.model.spec import ModelOptions, model_spec
from e5spark.spark import probe
from e5spark.spark.archive import localized
from e5spark.spark.executors import registered_executors
from e5spark.spark.survey import Failure, Survey, ready_slots, survey
from e5spark.tables import delta_session as delta
from e5spark.tables.ledger.holder import last_holder
from e5spark.tables.sinks.protocol import Sink
from e5spark.tables.storage.local import LocalStorage
from e5spark.tables.storage.open import open_storage
from e5spark.tables.storage.trial import try_write

# Java code of a session, in SQL because that works over Spark Connect, too.
_VERSIONS = {
    "java": "java_method('java.lang.System', 'getProperty', 'java.version')",
    "scala": "java_method('scala.util.Properties', 'versionNumberString')",
    "hadoop": "java_method('org.apache.hadoop.util.VersionInfo', 'getVersion')",
}
_DELTA_VERSION = "java_method('io.delta.package', 'VERSION')"
_MASTER_URL = re.compile(r"//.*@")


def examine(spark: SparkSession, config: JobConfig, *, patience: float) -> Examination:
    """Returns what a run of a job would meet; it writes nothing that stays.

    Args:
        spark: The session.
        config: The job.
        patience: Seconds to wait for executors.
    """
    notes = Notes()
    session = _settings(spark)
    slots, failure = ready_slots(spark, patience=patience)
    if not slots:
        return _without_executors(spark, config, session, failure)
    session |= _versions(spark)
    target = None
    with notes.step("output", "session", session):
        target, config = open_output(spark, config)
    plan = _plan(spark, config, target, notes)
    with notes.step("input", "session", session):
        if config.input.trigger == "available_now":
            streaming.open_stream(spark, config)
        else:
            sources.open_source(spark, config)
    local, location = _output(spark, config, target, notes, session)
    with ExitStack() as stack:
        request: dict[str, Any] = {"plan": None if plan is None else pickle.dumps(plan)}
        if local is not None:
            markers = {"output": stack.enter_context(_marker(local))}
            request |= {"directories": {"output": str(local)}, "markers": markers}
        driver = probe.report({**request, "answered": (), "plan": None})
        result = survey(spark, request, slots=slots, patience=patience)
    if uses_delta(config) and not any(finding.check == "jars" for finding in notes.findings):
        with suppress(Exception):
            session["delta"] = _values(spark, {"delta": _DELTA_VERSION})["delta"]
    found = findings(_facts(config, session, plan, driver, result))
    if location and not any(finding.check == "output" for finding in [*notes.findings, *found]):
        with notes.step("output", "executors", session):
            try_write(spark, location, prefix=probe.PREFIX, tasks=slots)
    return Examination(
        job=job_words(config),
        session=session,
        plan=plan,
        driver=driver,
        survey=result,
        findings=tuple(grouped([*notes.findings, *found], executors=len(result.reports))),
        unchecked=tuple(notes.unchecked),
    )


def _without_executors(
    spark: SparkSession, config: JobConfig, session: Mapping[str, str], failure: Failure | None
) -> Examination:
    """The examination where no task has run, so that nothing that needs one can be looked at."""
    notes = Notes()
    plan = _plan(spark, config, None, notes)
    driver = probe.report({"answered": (), "plan": None})
    failures = () if failure is None else (failure,)
    registered = registered_executors(spark)
    result = Survey(reports=(), registered=registered, slots=0, failures=failures, timed_out=True)
    found = findings(_facts(config, session, plan, driver, result))
    return Examination(
        job=job_words(config),
        session=session,
        plan=plan,
        driver=driver,
        survey=result,
        findings=tuple(grouped([*notes.findings, *found], executors=0)),
        unchecked=("Without an executor, neither the input nor the output can be looked at.",),
    )


def _facts(
    config: JobConfig,
    session: Mapping[str, str],
    plan: Plan | None,
    driver: Mapping[str, Any],
    result: Survey,
) -> Facts:
    facts = Facts(
        driver=driver,
        session=session,
        survey=result,
        downloads=bool(config.model.options.get("download")),
        delta=_delta_release(config),
    )
    if plan is None:
        return facts
    return replace(
        facts,
        model=plan.spec.checkpoint or plan.spec.model,
        precision=plan.spec.precision,
        weights=plan.weights.weights if plan.weights else "",
        needs=_needs(plan),
    )


def _needs(plan: Plan) -> Footprint | None:
    """What a worker with the model takes, from the driver's copy; None if it cannot be known."""
    with suppress(E5SparkError):
        files = locate(localized(plan.spec))
        engine = plan.spec.engine if plan.spec.engine != "auto" else next(iter(ENGINES))
        return footprint(files, engine=engine, precision=plan.spec.precision)
    return None


def uses_delta(config: JobConfig) -> bool:
    """Returns whether a job reads or writes a Delta table, as far as its file says."""
    return "delta" in (config.input.format, config.output.format)


def _settings(spark: SparkSession) -> dict[str, str]:
    facts = {"spark": spark.version, "client": pyspark.__version__}
    settings = ("spark.master", "spark.executor.cores", "spark.task.cpus", "spark.executor.memory")
    for name in (*settings, "spark.executor.memoryOverhead", "spark.executor.pyspark.memory"):
        value = spark.conf.get(name, "")
        if value:
            facts[name] = _MASTER_URL.sub("//", str(value))
    return facts


def _versions(spark: SparkSession) -> dict[str, str]:
    with suppress(Exception):  # a platform may forbid such functions
        return _values(spark, _VERSIONS)
    return {}


def _values(spark: SparkSession, expressions: Mapping[str, str]) -> dict[str, str]:
    columns = ", ".join(f"{expression} AS {name}" for name, expression in expressions.items())
    rows = spark.sql(f"SELECT {columns}").collect()
    return {name: str(rows[0][name]) for name in expressions}


def _delta_release(config: JobConfig) -> str:
    if not uses_delta(config):
        return ""
    with suppress(E5SparkError):
        return delta.session_settings()["spark.jars.packages"].rpartition(":")[2]
    return ""


def _plan(spark: SparkSession, config: JobConfig, target: Sink | None, notes: Notes) -> Plan | None:
    plans = []
    # Looked for here and on executors, and never fetched: a doctor leaves nothing behind.
    options: ModelOptions = {**config.model.options, "download": False}
    local = replace(config, model=replace(config.model, options=options))
    with notes.step("model", "driver"):
        if config.model.options.get("download") and not _is_here(local):
            notes.unchecked.append(
                f"The model {config.model.name} is not on the driver yet; the run downloads it. "
                "Fetch it first (hf download, or e5spark prepare) to have its hashes, its memory "
                "and its engine checked."
            )
        else:
            plans.append(plan_output(spark, local, "" if target is None else target.location))
    return plans[0] if plans else None


def _is_here(config: JobConfig) -> bool:
    try:
        locate(localized(model_spec(config.model.name, config.model.options)))
    except ModelError:
        return False
    return True


def _output(
    spark: SparkSession,
    config: JobConfig,
    target: Sink | None,
    notes: Notes,
    session: Mapping[str, str],
) -> tuple[Path | None, str]:
    """The output's directory if it is on local disks, and its path; nothing if it is unknown."""
    if target is None:
        return None, ""
    location = target.location or config.output.path
    if not location:
        notes.unchecked.append(
            f"The table {target.name} does not exist yet, so nobody knows whether its directory "
            "can be written."
        )
        return None, ""
    storage = None
    with notes.step("output", "driver", session):
        storage = open_storage(spark, location)
        holder = last_holder(storage)
        if holder is not None and not holder.is_released and holder.is_alive is not False:
            notes.findings.append(
                Finding(
                    check="lock",
                    level="warning",
                    where="driver",
                    found=holder.sentence,
                    fix="Wait until it ends, or see e5spark status and e5spark unlock.",
                )
            )
    return (storage.directory if isinstance(storage, LocalStorage) else None), location


@contextmanager
def _marker(directory: Path) -> Iterator[str]:
    """A file beside or in a directory, by which executors see that it is the driver's."""
    existing = next(parent for parent in (directory, *directory.parents) if parent.is_dir())
    marker = existing / f"{probe.PREFIX}{uuid4().hex}"
    try:
        marker.touch()
    except OSError:  # which the driver's own report says
        yield ""
        return
    try:
        yield str(marker)
    finally:
        marker.unlink(missing_ok=True)
