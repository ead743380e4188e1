"""Runs an evaluation: embeds what has no vectors, and judges task by task."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pyspark.sql import SparkSession

from e5spark.evaluate import datasets, embedding, retrieval, tasks
from e5spark.evaluate.config import EvaluationConfig, RetrievalConfig, TaskConfig
from e5spark.evaluate.datasets import Judgements
from e5spark.evaluate.embedding import VectorTable
from e5spark.evaluate.report import TaskResult
from e5spark.evaluate.tasks import Judgement

_JUDGES: Mapping[str, Callable[[TaskConfig, Mapping[str, VectorTable]], Judgement]] = {
    "similarity": tasks.similarity,
    "bitext": tasks.bitext,
    "classification": tasks.classification,
    "clustering": tasks.clustering,
}


@dataclass(frozen=True, kw_only=True)
class OpenTask:
    """A task whose tables have their vectors.

    Attributes:
        task: The task.
        tables: Its tables, by name.
        qrels: The judgements of a retrieval or a re-ranking; else empty.
    """

    task: TaskConfig
    tables: Mapping[str, VectorTable]
    qrels: Judgements


def run(spark: SparkSession, config: EvaluationConfig) -> list[TaskResult]:
    """Returns the result of each task, in the order of the file.

    Raises:
        ConfigError: If a table has no vectors, and the evaluation has no model or no output.
        ConflictError: If vectors cannot be compared.
        InputError: If a table or judgements cannot be read, or nothing can be judged.
        OptionError: If a task needs scikit-learn, which is not installed.
    """
    return [judge(spark, open_task(spark, config, task)) for task in config.tasks]


def open_task(spark: SparkSession, config: EvaluationConfig, task: TaskConfig) -> OpenTask:
    """Returns a task with its tables; those that have no vectors are embedded.

    Raises:
        ConfigError: If a table has no vectors, and the evaluation has no model or no output.
        ConflictError: If vectors cannot be compared.
        InputError: If a table or judgements cannot be read.
    """
    qrels: Judgements = {}
    if isinstance(task.settings, RetrievalConfig):
        named = task.tables.get("qrels")
        qrels = datasets.read_qrels(spark, named or datasets.of_layout(task.settings, "qrels"))
    tables = embedding.tables(spark, config, task, judged=qrels)
    return OpenTask(task=task, tables=tables, qrels=qrels)


def judge(spark: SparkSession, opened: OpenTask) -> TaskResult:
    """Returns the result of a task.

    Raises:
        InputError: If nothing can be judged.
        OptionError: If the task needs scikit-learn, which is not installed.
    """
    task, tables = opened.task, opened.tables
    if isinstance(task.settings, RetrievalConfig):
        judgement = retrieval.judge(spark, task, tables, opened.qrels)
    else:
        judgement = _JUDGES[task.kind](task, tables)
    return TaskResult(task=task, judgement=judgement, tables=tables)
