"""The tables of a task with their vectors; the job embeds those that have none."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from e5spark.errors import ConfigError, InputError
from e5spark.evaluate import datasets
from e5spark.evaluate.config import (
    KINDS,
    EvaluationConfig,
    RetrievalConfig,
    TableConfig,
    TaskConfig,
)
from e5spark.job import job_file
from e5spark.job import run as job
from e5spark.job.config import (
    EmbedConfig,
    InputConfig,
    JobConfig,
    ModelConfig,
    QualityConfig,
    RunConfig,
)
from e5spark.job.config import OutputConfig as JobOutput
from e5spark.job.report import check_errors
from e5spark.job.source import vector_names
from e5spark.model.spec import ModelOptions
from e5spark.names import redacted
from e5spark.search.vectors import VectorColumn, check_comparable, vector_column
from e5spark.tables.ledger.manifest import Manifest, read_manifest
from e5spark.tables.sources import batch
from e5spark.tables.storage.open import open_storage

log = logging.getLogger("e5spark")


@dataclass(frozen=True, kw_only=True)
class VectorTable:
    """A table that has vectors.

    Attributes:
        df: Its rows.
        id: The column that identifies a row; empty if there is none.
        vectors: The columns of the vectors: one, or two for pairs.
        judged_by: The columns that the judgement needs besides: scores or labels.
        parts: What makes its vectors comparable, from the manifest; empty without one.
        report: The report of the job, if this evaluation ran it; else empty.
    """

    df: DataFrame
    id: str
    vectors: tuple[VectorColumn, ...]
    judged_by: tuple[str, ...]
    parts: Mapping[str, Any]
    report: Mapping[str, Any]


def tables(
    spark: SparkSession, config: EvaluationConfig, task: TaskConfig, *, judged: Iterable[str] = ()
) -> dict[str, VectorTable]:
    """Returns the tables of a task, by name; those without vectors are embedded first.

    Args:
        spark: The session.
        config: The evaluation, for the model and the output.
        task: The task.
        judged: The ids of the queries that count; other queries are not embedded.

    Raises:
        ConfigError: If a table has no vectors, and the evaluation has no model or no output.
        ConflictError: If the vectors of two tables cannot be compared.
        InputError: If a table cannot be read.
        ColumnError: If a column is missing.
    """
    # Everything is read, and refused, before anything is embedded.
    opened = {side: _open(spark, task, side) for side in KINDS[task.kind].tables}
    for side, (table, df) in opened.items():
        if not _has_vectors(df, task, table):
            _check_model(config, task, side, df, table)
    result = {}
    for side, (table, df) in opened.items():
        if not _has_vectors(df, task, table):
            texts = _texts(df, task, table)
            if side == "queries":
                texts = _only(spark, texts, judged)
            result[side] = _embed(spark, config, task, side, texts)
        else:
            result[side] = _as_it_is(spark, task, table, df)
    columns = [column for table in result.values() for column in table.vectors]
    for column in columns[1:]:
        check_comparable(columns[0], column)
    return result


def _open(spark: SparkSession, task: TaskConfig, side: str) -> tuple[TableConfig, DataFrame]:
    table = task.tables.get(side)
    if table is None:
        assert isinstance(task.settings, RetrievalConfig)  # the file was refused otherwise
        table = datasets.of_layout(task.settings, side)
    if table.job:
        table = of_job(table, task, side)
    return table, datasets.read(spark, table)


def of_job(table: TableConfig, task: TaskConfig, side: str) -> TableConfig:
    """Returns the output of a job file.

    Raises:
        ConfigError: If the job embeds with another role than the task needs.
    """
    written = job_file.load(Path(table.job))
    role = table.role or KINDS[task.kind].tables[side]
    if written.embed.role and written.embed.role != role:
        raise ConfigError(
            f"{table.job} embeds with role {written.embed.role!r}, and the {side} of "
            f"{task.kind} need role {role!r}. Correct the job; or, if this is meant, set "
            f"role = {written.embed.role!r} in [tasks.{task.key}.{side}]."
        )
    output = written.output
    return replace(
        table,
        job="",
        path=output.path,
        table=output.table,
        format=output.format,  # type: ignore[arg-type]  # the sinks' formats are among ours
        id=table.id or written.input.id or ("id" if written.input.hash_id else ""),
        vector=table.vector or tuple(vector_names(written.embed)),
    )


def _vector_columns(task: TaskConfig, table: TableConfig) -> tuple[str, ...]:
    if table.vectors:
        return table.vectors
    kind = KINDS[task.kind]
    if kind.is_paired:
        return tuple(f"{name}_embedding" for name in table.texts or kind.text)
    return ("embedding",)


def _has_vectors(df: DataFrame, task: TaskConfig, table: TableConfig) -> bool:
    return all(name in df.columns for name in _vector_columns(task, table))


def _judged_by(task: TaskConfig) -> Sequence[str]:
    """The columns that the judgement of a task needs, besides vectors."""
    names = (getattr(task.settings, key, None) for key in ("score", "label"))
    return [name for name in names if name]


def _check_model(
    config: EvaluationConfig, task: TaskConfig, side: str, df: DataFrame, table: TableConfig
) -> None:
    names = " and ".join(map(repr, _vector_columns(task, table)))
    if config.model is None or not config.output.path:
        missing = "[model]" if config.model is None else "output.path"
        raise ConfigError(
            f"[tasks.{task.key}.{side}] has no column {names}, and the file has no {missing}. Name "
            "the table that a job wrote, with vector if its column has another name; or give "
            "[model] and output.path, and its texts are embedded into that directory."
        )
    _texts(df, task, table)  # raises where a column is missing


def _texts(df: DataFrame, task: TaskConfig, table: TableConfig) -> DataFrame:
    kind = KINDS[task.kind]
    text = kind.text
    if "corpus" in kind.tables and not table.texts and "title" in df.columns:
        text = ("title", *text)
    return datasets.texts(df, table, text=text, joined=not kind.is_paired, kept=_judged_by(task))


def _only(spark: SparkSession, texts: DataFrame, ids: Iterable[str]) -> DataFrame:
    judged = spark.createDataFrame([(id,) for id in ids], "judged string")
    return texts.join(judged, F.col("id").cast("string") == F.col("judged"), how="left_semi")


def _embed(
    spark: SparkSession, config: EvaluationConfig, task: TaskConfig, side: str, texts: DataFrame
) -> VectorTable:
    """Runs the job on the texts of a table; the next evaluation embeds only what has changed."""
    assert config.model is not None  # _check_model
    kind = KINDS[task.kind]
    directory = f"{config.output.path.rstrip('/')}/{task.key}/{side}"
    source = f"{directory}_texts"
    texts.write.mode("overwrite").parquet(source)
    options: ModelOptions = {**config.model.options, **task.model}
    named = task.tables.get(side)
    written = JobConfig(
        input=InputConfig(path=source, id="id"),
        embed=EmbedConfig(
            text=tuple(_names(texts)) if kind.is_paired else "text",
            role=(named and named.role) or kind.tables[side],
        ),
        model=ModelConfig(name=config.model.name, options=options),
        output=JobOutput(path=directory),
        run=RunConfig(delete_missing=True),
        quality=QualityConfig(),
        spark={},
    )
    log.info("%s: embedding its %s into %s", task.key, side, redacted(directory))
    report = job.run(spark, written)
    check_errors(report, 0)
    table = TableConfig(
        path=directory, format="parquet", id="id", vector=tuple(vector_names(written.embed))
    )
    df = batch.read_path(spark, directory, format="parquet", options={})
    return replace(_as_it_is(spark, task, table, df), report=report.as_dict())


def _names(texts: DataFrame) -> list[str]:
    """The two text columns of pairs, which follow the id."""
    return texts.columns[1:3]


def _as_it_is(
    spark: SparkSession, task: TaskConfig, table: TableConfig, df: DataFrame
) -> VectorTable:
    vectors = tuple(vector_column(df, name) for name in _vector_columns(task, table))
    for name in _judged_by(task):
        datasets.check_column(df, name)
    manifest = _manifest(spark, table) if vectors[0].fingerprint else None
    id = table.id or (manifest.id if manifest and manifest.id else "")
    if not id and "id" in df.columns:
        id = "id"
    if "corpus" in KINDS[task.kind].tables:
        if not id:
            raise InputError(
                f"{redacted(table.path or table.table)} has no column 'id'; name the column that "
                "the judgements mean with id."
            )
        datasets.check_column(df, id)
    return VectorTable(
        df=df,
        id=id,
        vectors=vectors,
        judged_by=tuple(_judged_by(task)),
        parts=manifest.parts if manifest else {},
        report={},
    )


def _manifest(spark: SparkSession, table: TableConfig) -> Manifest | None:
    """Returns what the vectors of a job's output are; None for a copy of it, or a catalog table."""
    if not table.path:
        return None
    try:
        return read_manifest(open_storage(spark, table.path))
    except InputError:  # a file, a glob, or a path that only Spark can reach
        return None
