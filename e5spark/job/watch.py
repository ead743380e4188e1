"""The watch over one run: canaries before its first row, figures of its vectors, gates, drift."""

import logging
from collections.abc import Mapping

from pyspark.sql import SparkSession

from e5spark.errors import ConflictError
from e5spark.job import canaries, quality
from e5spark.job.config import QualityConfig
from e5spark.job.figures import Figures, merge
from e5spark.job.quality import Quality
from e5spark.model.checkpoint import known_checkpoint
from e5spark.model.resolve import Plan
from e5spark.names import redacted
from e5spark.tables.ledger.ledger import Ledger

log = logging.getLogger("e5spark")


class Watch:
    """Watches one run of a table; ``add`` may be called from any thread."""

    def __init__(
        self, config: QualityConfig, plan: Plan, ledger: Ledger, versions: Mapping[str, str]
    ) -> None:
        """Begins the watch, and reads what the last run has left.

        Args:
            config: What to check.
            plan: The model.
            ledger: The table's, whose lock is held; the manifest exists.
            versions: Of the driver's packages, which are kept with new canaries.

        Raises:
            ConflictError: If a state file is damaged, or a later release wrote it.
        """
        self._config = config
        self._plan = plan
        self._ledger = ledger
        self._versions = versions
        self._last = ledger.last_figures()
        self._parts: list[Figures] = []
        self._canaries = "not_needed" if config.canaries else "off"

    def check_canaries(self, spark: SparkSession) -> None:
        """Embeds the canaries on an executor, once in a run, before its first row.

        They are compared with the vectors in the manifest, which gets them first if it has none.

        Raises:
            ConflictError: If a vector differs beyond the tolerance of the precision.
        """
        if self._canaries != "not_needed":
            return
        document = self._ledger.manifest.canaries
        if document is None:
            self._canaries = self._add_canaries(spark)
            return
        stored = canaries.read(document)
        current = canaries.embed(spark, self._plan, stored.texts)
        precision = self._plan.spec.precision
        problem = canaries.difference(stored, current, canaries.TOLERANCES[precision])
        if problem:
            raise ConflictError(self._message(problem, document.get("versions")))
        self._canaries = "matched"

    def add(self, figures: Figures) -> None:
        """Adds the figures of a chunk that is committed."""
        self._parts.append(figures)

    def finish(self) -> Quality:
        """Returns the verdicts on the run, and keeps its figures for the next if its gates pass."""
        figures = merge(self._parts)
        checkpoint = known_checkpoint(self._plan.spec)
        gates = quality.gates(
            self._config,
            normalized=self._plan.recipe.normalize,
            band=checkpoint.pair_cosine if checkpoint else None,
            checkpoint=checkpoint.name if checkpoint else "",
        )
        result = Quality(
            figures=figures,
            gates=quality.judge(figures, gates),
            drift=quality.judge_drift(figures, self._last, self._config),
            drift_fails=self._config.drift == "fail",
            canaries=self._canaries,
        )
        passed = all(verdict.passed for verdict in result.gates)
        if passed and figures.vectors >= self._config.min_vectors:
            self._ledger.keep_figures(figures.as_dict())
        return result

    def _add_canaries(self, spark: SparkSession) -> str:
        current = canaries.embed(spark, self._plan)
        if not current.texts:
            log.warning("None of the canaries could be embedded; the manifest gets none.")
            return "none"
        self._ledger.add_canaries({**current.as_dict(), "versions": dict(self._versions)})
        return "added"

    def _message(self, problem: str, versions: object) -> str:
        before = versions if isinstance(versions, Mapping) else {}
        changed = ", ".join(
            f"{name} {before.get(name)} is now {self._versions.get(name)}"
            for name in sorted({*before, *self._versions})
            if before.get(name) != self._versions.get(name)
        )
        return (
            f"The canaries of {redacted(self._ledger.storage.root)} have other vectors than when "
            f"they were first embedded: {problem} in {self._plan.spec.precision}. No row was "
            "embedded. The fingerprint is the same, so the cause is the executor's CPU, a library, "
            f"or a file that was altered without a new time. "
            f"{f'On the driver, {changed}. ' if changed else ''}"
            "Run with the versions and on the machines that wrote the output; or migrate: give a "
            "new output, and switch to it when it is complete."
        )
