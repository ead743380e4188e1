"""What a run will take, computed from its counts and from a sample: tokens, time, bytes, money."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from e5spark.job.chunks import Sizes, rows_per_chunk, rows_per_file, tasks_of
from e5spark.spark.executors import Executors
from e5spark.spark.speed import Measurement
from e5spark.tables.sinks.protocol import Size

_Z = 1.96  # standard deviations on each side of a 95 % interval
# Measured on two cores of an AMD EPYC: Spark's jobs before the first chunk and after the last, and
# those of a chunk.
_RUN_SECONDS, _CHUNK_SECONDS = 1.5, 0.5
# What a core writes of a work list, and what it reads and writes of files that are rewritten.
_WORK_BYTES, _REWRITTEN_BYTES = 60e6, 40e6  # a second
# Of a row of the output: the content hash, the fingerprint and the small columns.
_OTHER_BYTES = 40


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its 95 % confidence interval; both ends equal it if it is exact."""

    value: float
    low: float
    high: float

    def times(self, factor: float) -> "Interval":
        """Returns the interval of a multiple."""
        return Interval(value=self.value * factor, low=self.low * factor, high=self.high * factor)

    def as_dict(self, digits: int | None = None) -> dict[str, float]:
        """Returns it as JSON, rounded."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {name: round(number, digits) for name, number in numbers.items()}


def mean(values: npt.NDArray[np.int64], population: int) -> Interval:
    """Returns the mean of a population from a simple random sample of it.

    Args:
        values: The sample, at least one value.
        population: The size of the population.
    """
    value = float(values.mean())
    error = 0.0
    if len(values) < population and len(values) > 1:
        unsampled = 1 - len(values) / population
        error = _Z * float(values.std(ddof=1)) * math.sqrt(unsampled / len(values))
    elif len(values) < population:
        error = math.inf
    return Interval(value=value, low=max(0.0, value - error), high=value + error)


def share(count: int, sampled: int, population: int) -> Interval:
    """Returns the share of a population that has a property: Wilson's interval.

    Args:
        count: Members of the sample that have it.
        sampled: The size of the sample; with 0 the share is 0.
        population: The size of the population.
    """
    if not sampled or sampled >= population:
        value = count / sampled if sampled else 0.0
        return Interval(value=value, low=value, high=value)
    value = count / sampled
    # The sample counts as a larger one, if it is a large part of the population.
    size = sampled / (1 - sampled / population)
    center = (value + _Z**2 / (2 * size)) / (1 + _Z**2 / size)
    half = _Z / (1 + _Z**2 / size) * math.sqrt(value * (1 - value) / size + (_Z / size / 2) ** 2)
    low, high = max(0.0, center - half), min(1.0, center + half)
    return Interval(value=value, low=min(low, value), high=max(high, value))


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What a run does with the rows of its input and its table; exact.

    Attributes:
        rows_in: Rows of the input, without duplicates.
        duplicates: Rows that ``input.on_duplicate = "first"`` leaves out.
        new: Rows to embed whose ids the table does not have.
        changed: Rows to embed in place of another row, or again after an error.
        refreshed: Rows of which only other columns have changed.
        unchanged: Rows that stay as they are.
        deleted: Ids to remove.
        recovered: Rows of killed runs, which the run makes visible first.
    """

    rows_in: int
    duplicates: int
    new: int
    changed: int
    refreshed: int
    unchanged: int
    deleted: int
    recovered: int

    @property
    def to_embed(self) -> int:
        """Rows that go through the model."""
        return self.new + self.changed

    @property
    def replaced(self) -> int:
        """Rows of the table that are replaced or removed."""
        return self.changed + self.refreshed + self.deleted


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The seconds of a run, from the first look at its input to the last commit.

    Attributes:
        compare: Counting the input, and comparing it with the table.
        start: Python workers, canaries, loading the model, and its first passes.
        work_list: Writing the rows to embed.
        embed: Tokenizing and encoding them.
        commit: Spark's jobs around the chunks, and rewriting files that have other rows.
    """

    compare: float
    start: float
    work_list: float
    embed: float
    commit: float

    @property
    def total(self) -> float:
        """All of them."""
        return float(sum(vars(self).values()))


def embed_seconds(rows: int, row_seconds: float, sizes: Sizes, slots: int) -> float:
    """Returns how long all executors take for some rows.

    As long as all slots work; but no chunk is faster than one of its tasks, and only some chunks
    run at a time.

    Args:
        rows: Rows to embed.
        row_seconds: What one task takes for a row.
        sizes: The sizes of the run's chunks.
        slots: Tasks that run at once.
    """
    if not rows:
        return 0.0
    full, rest = divmod(rows, sizes.rows)
    longest = full * sizes.rows / tasks_of(sizes, sizes.rows)
    longest += rest / tasks_of(sizes, rest) if rest else 0
    at_once = min(sizes.concurrent_chunks, full + (rest > 0))
    return row_seconds * max(rows / slots, longest / at_once)


def rewritten_bytes(size: Size | None, replaced: int) -> int:
    """Returns the bytes of the files in which rows are replaced, if these are anywhere.

    Args:
        size: The files of the table; None if it does not exist.
        replaced: Rows that are replaced or removed.
    """
    if size is None or not size.files or not replaced:
        return 0
    touched = 1 - (1 - 1 / size.files) ** replaced
    return round(size.bytes * touched)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run will take.

    Attributes:
        rows: Exact counts of rows.
        measurements: The sample; empty if nothing is to be embedded.
        sizes: The sizes of the run's chunks.
        executors: The executors there are.
        compare_seconds: What counting and comparing has taken here.
        canary_seconds: What embedding the canaries has taken here.
        table: The files of the table; None if no row of it is replaced.
        replaced: Rows of the table that are replaced or removed.
        price: Of an executor for an hour; 0 if it is not known.
    """

    rows: Rows
    measurements: Sequence[Measurement]
    sizes: Sizes
    executors: Executors
    compare_seconds: float
    canary_seconds: float
    table: Size | None
    replaced: int
    price: float

    @property
    def sampled(self) -> int:
        """Rows of the sample whose tokens were counted."""
        return sum(part.rows for part in self.measurements)

    @property
    def texts(self) -> int:
        """Texts to embed, over all text columns, whatever their status."""
        return self.rows.to_embed * (self.measurements[0].texts if self.measurements else 1)

    @property
    def tokens(self) -> Interval:
        """Tokens of all texts before truncation, prompts and special tokens included."""
        return self._total("tokens")

    @property
    def lost_tokens(self) -> Interval:
        """Tokens that are cut."""
        return self._total("lost")

    @property
    def statuses(self) -> dict[str, float]:
        """The share of texts of each status, before any is encoded."""
        counts: dict[str, int] = {}
        for part in self.measurements:
            for name, count in part.statuses.items():
                counts[name] = counts.get(name, 0) + count
        total = sum(counts.values())
        return {name: count / total for name, count in counts.items()}

    @property
    def truncated(self) -> Interval:
        """The share of encoded texts, or windows of split texts, that lose tokens."""
        windows = sum(int(part.windows[part.tokens > 0].sum()) for part in self.measurements)
        cut = sum(part.truncated for part in self.measurements)
        sampled = self.sampled or 1
        return share(cut, windows, math.ceil(windows * self.rows.to_embed / sampled))

    @property
    def row_seconds(self) -> float:
        """What one task takes for a row."""
        if not self.sampled:
            return 0.0
        return sum(part.window_seconds for part in self.measurements) / self.sampled

    @property
    def steps(self) -> Steps:
        """The seconds of each part of the run."""
        work, cores = self.rows.to_embed, max(1, self.executors.cores)
        parts = self.measurements
        return Steps(
            compare=self.compare_seconds,
            start=self.canary_seconds
            + max((part.load_seconds + part.shape_seconds for part in parts), default=0.0),
            work_list=self.temporary_bytes / _WORK_BYTES / cores,
            embed=embed_seconds(work, self.row_seconds, self._sizes, self.executors.slots),
            commit=(_RUN_SECONDS if work or self.replaced else 0.0)
            + self.chunks * _CHUNK_SECONDS
            + self.rewritten_bytes / _REWRITTEN_BYTES / cores,
        )

    @property
    def seconds(self) -> float:
        """From the first look at the input to the last commit: ``seconds`` of the run's report."""
        return self.steps.total

    @property
    def executor_hours(self) -> float:
        """Hours of the run times executors."""
        return self.seconds / 3600 * self.executors.count

    @property
    def cost(self) -> float | None:
        """In the currency of the price; None without a price."""
        return self.executor_hours * self.price if self.price else None

    @property
    def chunks(self) -> int:
        """Chunks of the run."""
        return math.ceil(self.rows.to_embed / self._sizes.rows)

    @property
    def _sizes(self) -> Sizes:
        row = self._mean("work_bytes") + self._mean("vector_bytes")
        return replace(self.sizes, rows=rows_per_chunk(self.sizes, rows_per_file(self.sizes, row)))

    @property
    def rewritten_bytes(self) -> int:
        """Bytes of the files in which rows are replaced, if these rows are anywhere."""
        return rewritten_bytes(self.table, self.replaced)

    @property
    def output_bytes(self) -> int:
        """Bytes of the files with the rows that are embedded."""
        if not self.measurements:
            return 0
        windows = np.concatenate([part.by_row(part.windows) for part in self.measurements])
        # A row of a split text has the other columns again; of several texts, one has them.
        texts = self.measurements[0].texts
        vectors = float(windows.mean()) * self.statuses.get("ok", 0.0)
        rows = float(windows.mean()) / texts
        each = rows * (self._mean("row_bytes") + _OTHER_BYTES) + vectors * self._mean(
            "vector_bytes"
        )
        return round(self.rows.to_embed * each)

    @property
    def temporary_bytes(self) -> int:
        """Bytes of the work list."""
        return round(self.rows.to_embed * self._mean("work_bytes"))

    def _mean(self, name: str) -> float:
        """The mean over the tasks that know it; 0 if none does."""
        known = [value for part in self.measurements if (value := getattr(part, name)) is not None]
        return float(np.mean(known)) if known else 0.0

    def _total(self, name: str) -> Interval:
        if not self.measurements:
            return Interval(value=0.0, low=0.0, high=0.0)
        values = [part.by_row(getattr(part, name)) for part in self.measurements]
        return mean(np.concatenate(values), self.rows.to_embed).times(self.rows.to_embed)

    def token_lengths(self) -> Mapping[str, int]:
        """Returns percentiles of the tokens of a text that is encoded."""
        counts = [part.tokens[part.tokens > 0] for part in self.measurements]
        values = np.concatenate(counts) if counts else np.zeros(0)
        if not len(values):
            return {}
        points = {"median": 50, "p95": 95, "max": 100}
        return {name: int(np.percentile(values, point)) for name, point in points.items()}

    def as_dict(self) -> dict[str, Any]:
        """Returns the numbers of the JSON document."""
        steps = self.steps
        speeds = [part.spread for part in self.measurements]
        return {
            **vars(self.rows),
            "to_embed": self.rows.to_embed,
            "texts": self.texts,
            "sampled_rows": self.sampled,
            "tokens": self.tokens.as_dict(),
            "tokens_per_text": self.token_lengths(),
            "truncated_share": self.truncated.as_dict(6),
            "lost_tokens": self.lost_tokens.as_dict(),
            "status_shares": {name: round(value, 6) for name, value in self.statuses.items()},
            "rows_per_second": _per_second(self.row_seconds),
            "speed_spread": round(max(speeds, default=0.0), 4),
            "executors": self.executors.count,
            "cores": self.executors.cores,
            "tasks_at_once": self.executors.slots,
            "chunks": self.chunks,
            "seconds": round(self.seconds, 3),
            "seconds_by_step": {name: round(value, 3) for name, value in vars(steps).items()},
            "hours": round(self.seconds / 3600, 4),
            "executor_hours": round(self.executor_hours, 4),
            "price_per_hour": self.price or None,
            "cost": None if self.cost is None else round(self.cost, 2),
            "output_bytes": self.output_bytes,
            "temporary_bytes": self.temporary_bytes,
            "rewritten_bytes": self.rewritten_bytes,
        }


def _per_second(seconds: float) -> float | None:
    return round(1 / seconds, 1) if seconds else None
