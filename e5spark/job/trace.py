"""What a run leaves for its report: speed over time, token lengths, and a sample of its vectors."""

import logging
from collections.abc import Mapping, Sequence
from math import ceil
from threading import Lock
from typing import Any

from pyspark.sql import Column, DataFrame

from e5spark.job import lengths, vector_sample
from e5spark.job.config import ReportConfig
from e5spark.job.source import Source
from e5spark.job.timeline import Timeline
from e5spark.job.vector_sample import Rows, Sampling
from e5spark.model.resolve import Plan
from e5spark.spark.columns import result_names

log = logging.getLogger("e5spark")

_SAMPLES = 3  # Spark jobs of a run: the first chunk, the one in the middle, and the last


class Trace:
    """Collects over one run; its methods may be called from any thread."""

    def __init__(self, config: ReportConfig, plan: Plan) -> None:
        """Begins with nothing.

        Args:
            config: How many rows to sample, and what may be shown of them.
            plan: The model.
        """
        self._config, self._plan = config, plan
        self._lock = Lock()
        self._timeline = Timeline()
        self._lengths = [0] * (len(lengths.edges(plan.recipe.max_tokens)) + 1)
        self._samples_left, self._rows_left = _SAMPLES, config.sample
        self._sampled: list[Rows] = []

    def columns(self, source: Source) -> list[Column]:
        """Returns the columns that are counted while rows are written, for ``add``."""
        return lengths.columns(self._plan, result_names(self._plan, source.texts))

    def add(self, observed: Mapping[str, Any], *, seconds: float) -> None:
        """Adds a chunk that is committed.

        Args:
            observed: ``columns``, and the counts of ``e5spark.job.metrics``.
            seconds: From its Spark job to its commit.
        """
        counts = lengths.observed(self._plan, observed)
        amounts = {"rows": int(observed["embedded"] or 0), "tokens": int(observed["tokens"] or 0)}
        self._timeline.add(seconds=seconds, amounts=amounts)
        with self._lock:
            self._lengths = [one + other for one, other in zip(self._lengths, counts, strict=True)]

    def rows_to_sample(self, chunk: int, chunks: int) -> int:
        """Returns how many rows of a chunk to sample: none of most chunks.

        Args:
            chunk: Its number, from 1.
            chunks: How many the sync has.
        """
        chosen = {1, (chunks + 1) // 2, chunks}
        with self._lock:
            if chunk not in chosen or not self._samples_left or self._rows_left <= 0:
                return 0
            self._samples_left -= 1
            return min(self._rows_left, ceil(self._config.sample / len(chosen)))

    def sample(
        self,
        vectors: DataFrame,
        paths: Sequence[str],
        source: Source,
        *,
        staged: int,
        rows: int,
    ) -> None:
        """Samples staged rows; what fails is a warning, and the run goes on.

        Args:
            vectors: What the files of a chunk have; only its schema is used.
            paths: The files.
            source: The input.
            staged: Rows in the files.
            rows: About as many are sampled.
        """
        sampling = Sampling(
            paths=paths,
            schema=vectors.schema,
            staged=staged,
            rows=rows,
            examples=self._config.examples,
        )
        try:
            sampled = vector_sample.read(vectors.sparkSession, sampling, self._plan, source)
        except Exception as error:  # a report never fails a run
            log.warning("No sample for the report: %s.", type(error).__name__)
            return
        with self._lock:
            self._sampled.append(sampled)
            self._rows_left -= len(sampled)

    def as_dict(self, columns: Sequence[str]) -> dict[str, Any]:
        """Returns ``speed``, ``tokens`` and ``sample`` of the report.

        Args:
            columns: The columns of vectors.
        """
        limit = self._plan.recipe.max_tokens
        tokens = {"edges": lengths.edges(limit), "counts": self._lengths, "limit": limit}
        return {
            "speed": self._timeline.as_dict(),
            "tokens": tokens if sum(self._lengths) else None,
            "sample": vector_sample.as_dict(self._sampled, columns),
        }
