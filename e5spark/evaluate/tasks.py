"""Judges the vectors of one task: its scores, with their intervals and the values behind them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from e5spark.errors import InputError
from e5spark.evaluate import metrics, probes
from e5spark.evaluate.config import (
    ClassificationConfig,
    ClusteringConfig,
    SimilarityConfig,
    TaskConfig,
)
from e5spark.evaluate.embedding import VectorTable
from e5spark.evaluate.vectors import collect

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One metric of a task.

    Attributes:
        value: The metric.
        low: Lower end of its 95 % bootstrap interval; None where there is none.
        high: Upper end.
    """

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the judgement of a task gave.

    Attributes:
        scores: By metric; the first one is the task's main score.
        counts: What was judged: queries, documents, pairs, rows.
        values: For each metric of a retrieval, the value of each query.
        queries: The queries, in the order of the values.
        hits: ``query_id, corpus_id, score, rank`` of a retrieval; None for other tasks.
    """

    scores: Mapping[str, Score]
    counts: Mapping[str, int]
    values: Mapping[str, Floats]
    queries: tuple[str, ...] = ()
    hits: pa.Table | None = None


def mean(values: Floats) -> Score:
    """Returns the mean of some values, with its interval."""
    low, high = metrics.interval(values)
    return Score(value=float(values.mean()), low=low, high=high)


def similarity(task: TaskConfig, tables: Mapping[str, VectorTable]) -> Judgement:
    """Returns Spearman's and Pearson's correlation of cosines with scores."""
    assert isinstance(task.settings, SimilarityConfig)
    table = tables["pairs"]
    column = task.settings.score
    (first, second), values = collect(table.df, table.vectors, id=table.id, column=column)
    scores = _numbers(values, column)
    cosines = metrics.cosines(first, second)
    return Judgement(
        scores={
            name: _of_pairs(statistic, cosines, scores)
            for name, statistic in (("spearman", metrics.spearman), ("pearson", metrics.pearson))
        },
        counts={"pairs": len(scores)},
        values={},
    )


def _of_pairs(
    statistic: Callable[[Floats, Floats], float], values: Floats, scores: Floats
) -> Score:
    low, high = metrics.interval_of_pairs(statistic, values, scores)
    return Score(value=statistic(values, scores), low=low, high=high)


def bitext(task: TaskConfig, tables: Mapping[str, VectorTable]) -> Judgement:
    """Returns F1 and accuracy of taking the nearest sentence as the translation."""
    table = tables["pairs"]
    (first, second), _ = collect(table.df, table.vectors, id=table.id)
    hits = metrics.bitext_hits(first, second)
    correct = (hits == np.arange(len(hits))).astype(np.float64)
    return Judgement(
        scores={"f1": mean(metrics.bitext_f1(hits)), "accuracy": mean(correct)},
        counts={"pairs": len(hits)},
        values={},
    )


def classification(task: TaskConfig, tables: Mapping[str, VectorTable]) -> Judgement:
    """Returns the accuracy of MTEB's few-shot protocol, and of the full train set."""
    settings = task.settings
    assert isinstance(settings, ClassificationConfig)
    train, test = (_labelled(tables[side], settings.label) for side in ("train", "test"))
    few = probes.few_shot(
        train,
        test,
        samples_per_label=settings.samples_per_label,
        experiments=settings.experiments,
    )
    return Judgement(
        scores={
            f"accuracy@{settings.samples_per_label}": mean(few.mean(axis=0)),
            "accuracy": mean(probes.full_train(train, test)),
        },
        counts={"train": len(train[1]), "test": len(test[1]), "classes": len(set(train[1]))},
        values={},
    )


def clustering(task: TaskConfig, tables: Mapping[str, VectorTable]) -> Judgement:
    """Returns V-measure of k-means, the mean over its seeds."""
    settings = task.settings
    assert isinstance(settings, ClusteringConfig)
    vectors, labels = _labelled(tables["texts"], settings.label)
    values = probes.v_measures(vectors, labels, experiments=settings.experiments)
    return Judgement(
        scores={
            "v_measure": Score(value=float(values.mean())),
            "v_measure_std": Score(value=float(values.std())),
        },
        counts={"rows": len(labels), "labels": len(set(labels))},
        values={},
    )


def _labelled(
    table: VectorTable, label: str
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.str_]]:
    (vectors,), labels = collect(table.df, table.vectors, id=table.id, column=label)
    return vectors, np.array([str(value) for value in labels])


def _numbers(values: Sequence[object], column: str) -> Floats:
    try:
        return np.array([float(str(value)) for value in values])
    except ValueError as error:
        raise InputError(f"Column {column!r} has a value that is no number.") from error
