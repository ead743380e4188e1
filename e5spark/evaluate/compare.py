"""Precisions, output types and dims side by side: quality, speed and bytes on one's own sets."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyspark.sql import SparkSession

from e5spark.errors import ConfigError
from e5spark.evaluate import run as evaluation
from e5spark.evaluate.config import EvaluationConfig
from e5spark.evaluate.derived import Storage, derived, ranges
from e5spark.evaluate.report import TaskResult, aligned
from e5spark.evaluate.run import OpenTask
from e5spark.job.config import ModelConfig
from e5spark.model.spec import model_spec
from e5spark.spark.embedding import plan_model

_CALIBRATED = ("int8", "uint8")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to compute and store the vectors of all tasks.

    Attributes:
        precision: How the engine computed.
        storage: How a vector is stored.
        results: The result of each task.
    """

    precision: str
    storage: Storage
    results: Sequence[TaskResult]

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second over all tables that this run embedded; None if there are none."""
        reports = [
            table.report
            for result in self.results
            for table in result.tables.values()
            if table.report.get("embedded")
        ]
        if not reports:
            return None
        seconds = sum(report["seconds"] for report in reports)
        return float(sum(report["tokens"] - report["lost_tokens"] for report in reports) / seconds)

    def as_dict(self) -> dict[str, Any]:
        """Returns the variant's part of the JSON document."""
        return {
            "precision": self.precision,
            "output_type": self.storage.output_type,
            "dim": self.storage.dim,
            "bytes_per_vector": self.storage.bytes,
            "tokens_per_second": self.tokens_per_second,
            "tasks": [result.as_dict() for result in self.results],
        }


def compare(spark: SparkSession, config: EvaluationConfig) -> list[Variant]:
    """Returns the variants: each precision in float32, then output types and dims of the first one.

    Raises:
        ConfigError: If several precisions are asked for and a table has its vectors already, or a
            dim is larger than the vectors'.
        ConflictError: If an output directory has other vectors, or vectors cannot be compared.
        InputError: If a table or judgements cannot be read.
        ModelError: If the model of a precision is absent or incomplete.
    """
    for precision in config.compare.precisions:  # the last is embedded hours after the first
        model = _with_precision(config, precision).model
        if model is not None:
            plan_model(model_spec(model.name, model.options), spark=spark, required=True)
    variants: list[Variant] = []
    opened: list[OpenTask] = []
    for precision in config.compare.precisions:
        tasks = [
            evaluation.open_task(spark, _with_precision(config, precision), task)
            for task in config.tasks
        ]
        opened = opened or tasks
        if len(config.compare.precisions) > 1:
            _check_embedded(tasks)
        variants.append(
            Variant(
                precision=precision,
                storage=Storage(output_type="float32", dim=_dim(config, tasks)),
                results=[evaluation.judge(spark, task) for task in tasks],
            )
        )
    first = variants[0]
    for storage in storages(config, first.storage.dim):
        results = [evaluation.judge(spark, _stored(task, storage)) for task in opened]
        variants.append(Variant(precision=first.precision, storage=storage, results=results))
    return variants


def storages(config: EvaluationConfig, dim: int) -> Iterator[Storage]:
    """Returns every output type in every dim, apart from float32 in the vectors' own.

    Raises:
        ConfigError: If a dim is larger than the vectors'.
    """
    for number in config.compare.dims or (dim,):
        if number > dim:
            raise ConfigError(f"compare.dims has {number}; the vectors have {dim} components.")
        for output_type in config.compare.output_types:
            if (output_type, number) != ("float32", dim):
                yield Storage(output_type=output_type, dim=number)


def table(variants: Sequence[Variant]) -> str:
    """Returns the variants as aligned lines, with each task's main score.

    In brackets: the difference from the first variant.
    """
    first = _main_scores(variants[0])
    header = ["precision", "output type", "dim", "bytes", "tokens/s"]
    rows = [[*header, *(f"{task} {metric}" for task, metric in first)]]
    for variant in variants:
        scores = _main_scores(variant)
        speed = variant.tokens_per_second
        rows.append(
            [
                variant.precision,
                variant.storage.output_type,
                str(variant.storage.dim),
                str(variant.storage.bytes),
                "" if speed is None else f"{speed:.0f}",
                *(f"{scores[key]:.4f} ({scores[key] - first[key]:+.4f})" for key in first),
            ]
        )
    return aligned(rows)


def _main_scores(variant: Variant) -> Mapping[tuple[str, str], float]:
    scores = {}
    for result in variant.results:
        metric, score = next(iter(result.judgement.scores.items()))
        scores[result.task.key, metric] = score.value
    return scores


def _with_precision(config: EvaluationConfig, precision: str) -> EvaluationConfig:
    """The evaluation with the model in a precision, and a directory of its own."""
    if config.model is None:
        return config
    name = config.compare.int8 if precision == "int8" else config.model.name
    options = {**config.model.options, "precision": precision}
    model = ModelConfig(name=name, options=options)  # type: ignore[arg-type]  # with its precision
    path = f"{config.output.path.rstrip('/')}/{precision}" if config.output.path else ""
    return replace(config, model=model, output=replace(config.output, path=path))


def _check_embedded(tasks: Sequence[OpenTask]) -> None:
    for opened in tasks:
        for side, vectors in opened.tables.items():
            if not vectors.report:
                raise ConfigError(
                    f"[tasks.{opened.task.key}.{side}] has its vectors already, in one precision; "
                    "name its texts, or leave one precision in compare.precisions."
                )


def _dim(config: EvaluationConfig, tasks: Sequence[OpenTask]) -> int:
    """The dim of the vectors of all tasks, which must be float32.

    Raises:
        ConfigError: If there are several, or the vectors have another output type.
    """
    columns = [table.vectors[0] for opened in tasks for table in opened.tables.values()]
    dims = {column.dim for column in columns}
    if len(dims) > 1 or {column.output_type for column in columns} != {"float32"}:
        raise ConfigError(
            "e5spark compare needs float32 vectors of one dim for all tasks, from which it makes "
            "the other output types; leave model.output_type and model.dim out."
        )
    return next(iter(dims)) or _width(tasks)


def _width(tasks: Sequence[OpenTask]) -> int:
    """The length of the first vector, where no metadata says it."""
    vectors = next(iter(tasks[0].tables.values()))
    name = vectors.vectors[0].name
    row = vectors.df.select(name).dropna().first()
    return len(row[0]) if row else 0


def _stored(opened: OpenTask, storage: Storage) -> OpenTask:
    """The task with its vectors stored in another way, with ranges from what is searched."""
    corpus = [opened.tables["corpus"]] if "corpus" in opened.tables else [*opened.tables.values()]
    calibration = ranges(corpus, storage.dim) if storage.output_type in _CALIBRATED else None
    tables = {
        side: derived(vectors, storage, calibration) for side, vectors in opened.tables.items()
    }
    return replace(opened, tables=tables)
