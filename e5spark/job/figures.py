"""Figures of the vectors that a run writes: taken from every vector, in the pass that writes it."""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from pyspark.sql import Column
from pyspark.sql import functions as F

from e5spark.job.source import Source
from e5spark.model.resolve import Plan
from e5spark.names import quoted
from e5spark.spark.columns import figure_names, result_names

# Relative standard deviation of the estimated numbers of distinct texts and vectors.
_ESTIMATE_ERROR = 0.01
# NaN is greater than any number in Spark, so one comparison finds NaN and infinity.
_LARGEST = 3.4028235e38


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Figures of some vectors; those of two parts are merged by ``merge``.

    Attributes:
        vectors: Vectors, over all text columns, or windows of split texts.
        errors: Texts that ended in an error and have no vector.
        truncated: Vectors of truncated texts.
        not_finite: Vectors with a component that is NaN or infinite.
        zeros: Vectors of length 0.
        lowest_norm: The shortest finite vector's length; None without one.
        highest_norm: The longest finite vector's length; None without one.
        pairs: Pairs of vectors of different rows that were compared.
        cosine_sum: The sum of their cosines.
        distinct_texts: Different texts, estimated to 1 % and summed over chunks; None for several
            text columns, whose texts are hashed together.
        distinct_vectors: Different vectors as they are stored, bit by bit, counted alike.
    """

    vectors: int = 0
    errors: int = 0
    truncated: int = 0
    not_finite: int = 0
    zeros: int = 0
    lowest_norm: float | None = None
    highest_norm: float | None = None
    pairs: int = 0
    cosine_sum: float = 0.0
    distinct_texts: int | None = None
    distinct_vectors: int | None = None

    @property
    def norm_error(self) -> float | None:
        """The largest distance of a vector's length from 1; None without vectors."""
        if self.lowest_norm is None or self.highest_norm is None:
            return None
        return max(abs(self.lowest_norm - 1), abs(self.highest_norm - 1))

    @property
    def pair_cosine(self) -> float | None:
        """The mean cosine of random pairs; None without pairs."""
        return self.cosine_sum / self.pairs if self.pairs else None

    @property
    def equal_share(self) -> float | None:
        """The share of different texts whose vector is another text's too; None if unknown."""
        if not self.distinct_texts or self.distinct_vectors is None:
            return None
        return max(0.0, 1 - self.distinct_vectors / self.distinct_texts)

    @property
    def truncated_share(self) -> float | None:
        """The share of vectors whose text was truncated; None without vectors."""
        return self.truncated / self.vectors if self.vectors else None

    @property
    def error_share(self) -> float | None:
        """The share of texts that ended in an error; None without texts."""
        texts = self.vectors + self.errors
        return self.errors / texts if texts else None

    def as_dict(self) -> dict[str, Any]:
        """Returns the figures that are reported, kept and compared, by name."""
        return {name: _rounded(getattr(self, name)) for name in NAMES}


NAMES = (
    "vectors",
    "not_finite",
    "zeros",
    "lowest_norm",
    "highest_norm",
    "pair_cosine",
    "equal_share",
    "truncated_share",
    "error_share",
)
_LOWEST, _HIGHEST = {"lowest_norm"}, {"highest_norm"}


def merge(parts: Sequence[Figures]) -> Figures:
    """Returns the figures of all vectors of some parts."""
    return functools.reduce(_merged, parts, Figures())


def _merged(one: Figures, other: Figures) -> Figures:
    return Figures(**{field.name: _sum(one, other, field.name) for field in fields(Figures)})


def _sum(one: Figures, other: Figures, name: str) -> Any:  # noqa: ANN401  # a field's value
    values = [value for value in (getattr(one, name), getattr(other, name)) if value is not None]
    if not values:
        return None
    if name in _LOWEST:
        return min(values)
    return max(values) if name in _HIGHEST else sum(values)


def columns(plan: Plan, source: Source) -> list[Column]:
    """Returns the columns that aggregate figures while rows are written, for ``observed``.

    They are aggregates of the columns of the output and of ``figure_names``. For vectors of 384
    components they take about 2 µs a row, where a CPU embeds a text in 5 to 15 ms.
    """
    names = result_names(plan, source.texts)
    hidden = figure_names(source.texts)
    norms = [F.col(columns["norm"]) for columns in hidden]
    cosines = [F.col(columns["pair_cosine"]).cast("double") for columns in hidden]
    finite = [F.when(norm <= _LARGEST, norm) for norm in norms]
    aggregates = {
        "vectors": _total(F.count, norms),
        "not_finite": _total(F.sum, [(norm > _LARGEST).cast("int") for norm in norms]),
        "zeros": _total(F.sum, [(norm == 0).cast("int") for norm in norms]),
        "lowest_norm": _extreme(F.least, F.min, finite),
        "highest_norm": _extreme(F.greatest, F.max, finite),
        "pairs": _total(F.count, cosines),
        "cosine_sum": _total(F.sum, cosines),
    }
    if len(names) == 1:
        aggregates |= _distinct(names[0], source)
    return [column.alias(name) for name, column in aggregates.items()]


def observed(values: Mapping[str, Any]) -> Figures:
    """Returns the figures of a chunk.

    Args:
        values: What was observed: ``columns``, and the counts of ``e5spark.job.metrics``.
    """
    values = {**values, "errors": values["error"]}
    return Figures(
        **{
            field.name: values[field.name]
            for field in fields(Figures)
            if values.get(field.name) is not None
        }
    )


def _distinct(names: Mapping[str, str], source: Source) -> dict[str, Column]:
    vector, text = F.col(quoted(names["embedding"])), F.col(quoted(source.hash))
    if "window" in names:  # of a text that is split
        text = F.struct(text, F.col(quoted(names["window"])))
    return {
        "distinct_texts": F.approx_count_distinct(
            F.when(vector.isNotNull(), text), _ESTIMATE_ERROR
        ),
        "distinct_vectors": F.approx_count_distinct(vector, _ESTIMATE_ERROR),
    }


def _total(aggregate: Callable[[Column], Column], columns: Sequence[Column]) -> Column:
    sums = [F.coalesce(aggregate(column), F.lit(0)) for column in columns]
    return functools.reduce(operator.add, sums)


def _extreme(
    pick: Callable[..., Column], aggregate: Callable[[Column], Column], columns: Sequence[Column]
) -> Column:
    extremes = [aggregate(column).cast("double") for column in columns]
    return pick(*extremes) if len(extremes) > 1 else extremes[0]


def _rounded(value: float | None) -> float | None:
    return value if value is None or isinstance(value, int) else round(value, 6)
