"""The embedding job: a table in, a table with vectors out, and an account of every row."""

import importlib.metadata
import platform
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from e5spark import __version__
from e5spark.errors import ConfigError, ConflictError, GateError
from e5spark.job import source as intake
from e5spark.job import streaming as arrivals
from e5spark.job.config import JobConfig
from e5spark.job.metrics import STATUSES
from e5spark.job.source import Source
from e5spark.job.sync import SyncContext, update
from e5spark.model.output_type import Calibration
from e5spark.model.resolve import Plan
from e5spark.model.spec import ModelOptions, ModelSpec, model_spec
from e5spark.spark import calibration as ranges
from e5spark.spark.embedding import plan_model
from e5spark.spark.sampling import sample_texts
from e5spark.tables.ledger.ledger import Ledger
from e5spark.tables.ledger.lock import acquire
from e5spark.tables.ledger.manifest import Manifest, read_manifest
from e5spark.tables.ledger.records import Record
from e5spark.tables.sinks.commit import Commits
from e5spark.tables.sinks.delta_columns import DeltaColumns
from e5spark.tables.sinks.files import check_options, parquet_options
from e5spark.tables.sinks.parquet import ParquetSink
from e5spark.tables.sinks.paths import check_apart, check_path, overlap
from e5spark.tables.sinks.protocol import Sink
from e5spark.tables.sinks.registry import open_sink
from e5spark.tables.storage.open import open_storage


def run(spark: SparkSession, config: JobConfig) -> dict[str, Any]:
    """Embeds what is new in a table as the config says, and returns the account of the run.

    Everything that can be checked before a task runs is checked before one runs: the output, the
    model, the input and its columns, in this order. The same command finishes what a killed run
    has left.

    Raises:
        ConflictError: If the output is not e5spark's, holds other vectors, or another run has it.
        ModelError: If the checkpoint is unknown, absent or incomplete.
        InputError: If the input cannot be read, or its columns or ids break the contract.
    """
    if config.output.write == "columns":
        target, config = _columns(spark, config)
    else:
        target = _target(spark, config)
    # A job does not leave finding the model to its executors.
    plan = plan_model(model_spec(config.model.name, config.model.options), required=True)
    stream = None
    if config.input.trigger == "available_now":
        stream, rows = arrivals.open_stream(spark, config)
    else:
        rows = intake.open_source(spark, config)
    started = time.monotonic()
    account = _update(spark, config, plan, rows, target, stream)
    return {**account, **_facts(spark, config, plan, account, time.monotonic() - started)}


def compact(spark: SparkSession, config: JobConfig, *, target_bytes: int) -> dict[str, Any]:
    """Merges the small files of the output; no row changes. Returns how many files there were.

    Raises:
        ConflictError: If the output is not e5spark's, or another run has it.
    """
    target = _parquet(spark, config)
    files = open_storage(spark, target.location) if target.location else None
    manifest = read_manifest(files) if files is not None else None
    if files is None or manifest is None:
        raise ConflictError(f"{target.name} is no table that e5spark has written; embed first.")
    if manifest.table != target.kind:
        raise ConflictError(
            f"{target.name} is a {manifest.table} table; it is compacted by Delta's OPTIMIZE."
        )
    schema = StructType.fromJson(dict(manifest.schema))
    with acquire(files) as held:
        ledger = Ledger(files, held)
        commits = Commits(ledger, target, schema=schema, id=manifest.id)
        commits.check_known()
        commits.recover(spark)
        files_before = target.count_files()
        record = target.stage_compaction(
            ledger,
            Record(name=ledger.name(1), kind="replace"),
            schema=schema,
            target_bytes=target_bytes,
        )
        if record.removes:
            commits.commit(record)
        ledger.sweep()
    return {
        "output": target.name,
        "rows": record.rows,
        "files_before": files_before,
        "files_after": target.count_files(),
    }


def calibrate(spark: SparkSession, config: JobConfig, *, sample: int) -> Calibration:
    """Returns the ranges of the job's vectors, over a sample of its input.

    Raises:
        ModelError: If the checkpoint is unknown, absent or incomplete.
        InputError: If the input cannot be read or its columns break the contract.
    """
    options: ModelOptions = {
        **config.model.options,
        "output_type": "float32",
        "calibration": None,
    }
    plan = plan_model(model_spec(config.model.name, options), required=True)
    df = intake.read(spark, config)
    return ranges.calibrate(df, plan, intake.texts_of(df, config.embed), sample=sample)


def sample(
    spark: SparkSession, config: JobConfig, spec: ModelSpec, *, rows: int
) -> tuple[list[str], list[str]]:
    """Returns texts of a sample of the job's input, and the prefix of each.

    Args:
        spark: The session.
        config: The job.
        spec: The model whose prompts they get.
        rows: To look at.

    Raises:
        InputError: If the input cannot be read, has no text, or its columns break the contract.
    """
    df = intake.read(spark, config)
    texts = intake.texts_of(df, config.embed)
    return sample_texts(df, plan_model(spec), texts, rows=rows)


def check_errors(account: Mapping[str, Any], max_error_rate: float) -> None:
    """Raises if more texts than allowed ended in an error: of all in the input, not of those to do.

    Raises:
        GateError: If so; the good rows are written, the others have ``status = 'error'``.
    """
    done = sum(account[name] for name in STATUSES)
    texts = done * account["rows_in"] // max(account["embedded"], 1)
    if account["error"] > max_error_rate * texts:
        raise GateError(
            f"{account['error']} of {texts} texts could not be embedded, more than "
            f"run.max_error_rate = {max_error_rate} allows. All rows are in {account['output']}; "
            "the column error of those with status = 'error' says why."
        )


def _target(spark: SparkSession, config: JobConfig) -> Sink:
    output = config.output
    _check_apart(config)
    return open_sink(
        spark,
        output.format,
        path=output.path,
        table=output.table,
        options=output.options,
        vectors=intake.vector_names(config.embed),
    )


def _columns(spark: SparkSession, config: JobConfig) -> tuple[Sink, JobConfig]:
    """The input table as the target, and the job that reads what it was when the run began."""
    given = config.input
    kept = (given.id, *intake.read_columns(config.embed))
    target = DeltaColumns(spark, path=given.path, table=given.table, kept=kept)
    pinned = replace(
        given,
        path=target.location,
        table="",
        format="delta",
        columns=kept,
        options={"versionAsOf": str(target.version)},
    )
    return target, replace(config, input=pinned)


def _check_apart(config: JobConfig) -> None:
    if config.input.path and config.output.path:
        check_apart(config.input.path, config.output.path)
    checkpoint = config.input.checkpoint_location
    for path in filter(None, (config.input.path, config.output.path)):
        if checkpoint and overlap(checkpoint, path):
            raise ConfigError(
                f"input.checkpoint_location {checkpoint} and {path} are the same directory, or one "
                "lies inside the other; give the checkpoint a directory of its own."
            )


def _parquet(spark: SparkSession, config: JobConfig) -> ParquetSink:
    output = config.output
    _check_apart(config)
    check_path(output.path)
    check_options(output.options)
    options = {**parquet_options(intake.vector_names(config.embed)), **output.options}
    return ParquetSink(spark, path=output.path, table=output.table, options=options)


def _update(
    spark: SparkSession,
    config: JobConfig,
    plan: Plan,
    rows: Source,
    target: Sink,
    stream: DataFrame | None,
) -> dict[str, Any]:
    schema = intake.embedded(rows.rows, plan, rows).schema
    facts = intake.provenance(plan)
    properties = {f"e5spark.{key}": value for key, value in facts.items()}
    if not target.location:
        target.create(schema, properties)
    files = open_storage(spark, target.location)
    with acquire(files) as held:
        commits = Commits(Ledger(files, held), target, schema=schema, id=rows.id)
        commits.begin(_manifest(spark, plan, rows, schema, target), properties)
        given = SyncContext(run=config.run, plan=plan, intake=rows, commits=commits)
        if stream is not None:
            return arrivals.follow(spark, given, config, stream)
        return update(spark, given)


def _manifest(
    spark: SparkSession, plan: Plan, rows: Source, schema: StructType, target: Sink
) -> Manifest:
    return Manifest(
        fingerprint=plan.fingerprint.digest,
        parts=plan.fingerprint.as_dict(),
        schema=schema.jsonValue(),
        dim=plan.recipe.dim,
        id=rows.id,
        table=target.kind,
        versions=_versions(spark),
    )


def _facts(
    spark: SparkSession, config: JobConfig, plan: Plan, account: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    fingerprint = plan.fingerprint
    tokens = account["tokens"] - account["lost_tokens"]
    return {
        "lost_token_share": round(account["lost_tokens"] / max(account["tokens"], 1), 6),
        "seconds": round(seconds, 3),
        "texts_per_second": round(account["ok"] / seconds, 1),
        "tokens_per_second": round(tokens / seconds, 1),
        "model": plan.spec.checkpoint or plan.spec.model,
        "dim": plan.recipe.dim,
        "fingerprint": fingerprint.digest,
        "fingerprint_parts": fingerprint.as_dict(),
        "output": config.output.table or config.output.path,
        "versions": _versions(spark),
    }


def _versions(spark: SparkSession) -> dict[str, str]:
    """The driver's packages; read from their metadata, because importing torch takes seconds."""
    found = {
        "e5spark": __version__,
        "python": platform.python_version(),
        "spark": spark.version,
    }
    for name in ("pyspark", "torch", "transformers", "tokenizers", "pyarrow", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
