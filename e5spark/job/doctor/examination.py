"""What a doctor found, as a document."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from e5spark.job.config import JobConfig
from e5spark.job.doctor.finding import Finding
from e5spark.model.resolve import Plan
from e5spark.names import redacted
from e5spark.spark import probe
from e5spark.spark.survey import Survey


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What a doctor found.

    Attributes:
        job: The job in words: ``input``, ``output``, ``model``.
        session: Versions and settings of the session; empty if it did not start.
        plan: The model as the driver resolved it; None if it could not.
        driver: The report of the driver's own process.
        survey: The reports of the executors; None if there was no session.
        findings: What does not fit; errors come first.
        unchecked: What could not be looked at, as sentences.
    """

    job: Mapping[str, str]
    session: Mapping[str, str] = field(default_factory=dict)
    plan: Plan | None = None
    driver: Mapping[str, Any]
    survey: Survey | None = None
    findings: tuple[Finding, ...]
    unchecked: tuple[str, ...] = ()

    @property
    def errors(self) -> list[Finding]:
        """Returns what must be mended before a run."""
        return [finding for finding in self.findings if finding.level == "error"]

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON document."""
        survey, plan = self.survey, self.plan
        return {
            "job": dict(self.job),
            "session": dict(self.session),
            "model": None if plan is None else _plan_facts(plan),
            "driver": dict(self.driver),
            "executors": [] if survey is None else list(survey.reports),
            "executors_answered": 0 if survey is None else len(survey.reports),
            "executors_registered": None if survey is None else survey.registered,
            "task_slots": 0 if survey is None else survey.slots,
            "findings": [finding.as_dict() for finding in self.findings],
            "unchecked": list(self.unchecked),
        }


def without_session(job: Mapping[str, str], finding: Finding) -> Examination:
    """Returns the examination of a job that has no session, or of a job file that is wrong."""
    driver = probe.report({"answered": (), "plan": None})
    return Examination(job=job, driver=driver, findings=(finding,))


def job_words(config: JobConfig) -> dict[str, str]:
    """Returns what a job reads, runs and writes."""
    table, output = config.input, config.output
    columns = "columns of it" if output.write == "columns" else ""
    return {
        "input": redacted(f"{table.table or table.path} ({table.format})"),
        "output": columns or redacted(f"{output.table or output.path} ({output.format})"),
        "model": redacted(config.model.name),
    }


def _plan_facts(plan: Plan) -> dict[str, Any]:
    return {
        "name": plan.spec.checkpoint or plan.spec.model,
        "precision": plan.spec.precision,
        "engine": plan.spec.engine,
        "device": plan.spec.device,
        "dim": plan.recipe.dim,
        "fingerprint": plan.fingerprint.digest,
        **({} if plan.weights is None else asdict(plan.weights)),
    }
