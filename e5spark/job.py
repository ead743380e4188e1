"""The embedding job: a table in, a table with vectors out, and an account of every row."""

import importlib.metadata
import logging
import platform
import time
from collections.abc import Mapping
from typing import Any

from pyspark.sql import Column, DataFrame, Observation, SparkSession
from pyspark.sql import functions as F

from e5spark import __version__
from e5spark.checkpoint import locate
from e5spark.config import EmbedConfig, JobConfig
from e5spark.errors import ColumnError, E5SparkError, GateError
from e5spark.fingerprint import Fingerprint
from e5spark.spark.embed import embed_plan, plan_model, quoted, resolve_column
from e5spark.spark.worker import Plan
from e5spark.spec import model_spec
from e5spark.tables import sink, source

log = logging.getLogger(__name__)

_STATUSES = ("ok", "null_text", "empty_text", "error")


def run(spark: SparkSession, config: JobConfig) -> dict[str, Any]:
    """Embeds a table as the config says, and returns the account of the run.

    Everything that can be checked before a task runs is checked before one runs: the output, the
    model, the input and its columns, in this order.

    Raises:
        ConflictError: If the output exists.
        ModelError: If the checkpoint is unknown, absent or incomplete.
        InputError: If the input cannot be read or its columns break the contract.
        GateError: If too many rows ended in an error; the others are written.
    """
    _check_output(spark, config)
    spec = model_spec(config.model.name, config.model.options)
    plan = plan_model(spec)
    if plan.weights is None:
        locate(spec)  # says what is missing: a job does not leave that to its executors
    df = _read(spark, config)
    before, after = Observation("e5spark_in"), Observation("e5spark_out")
    started = time.monotonic()
    vectors = _vectors(df.observe(before, F.count(F.lit(1)).alias("rows")), plan, config.embed)
    vectors = _kept(vectors, df, config)
    _write(vectors.observe(after, *_counts(config.embed.prefix)), config)
    seconds = time.monotonic() - started
    counts = {name: int(value or 0) for name, value in after.get.items()}
    account = _account(plan, config, int(before.get["rows"]), counts, seconds)
    account["versions"]["spark"] = spark.version
    _reconcile(account)
    return account


def check_errors(account: Mapping[str, Any], max_error_rate: float) -> None:
    """Raises if more rows than allowed ended in an error.

    Raises:
        GateError: If so; the good rows are written, the others have ``status = 'error'``.
    """
    if account["error"] > max_error_rate * account["rows"]:
        raise GateError(
            f"{account['error']} of {account['rows']} rows could not be embedded, more than "
            f"run.max_error_rate = {max_error_rate} allows. All rows are in {account['output']}; "
            "the column error of those with status = 'error' says why."
        )


def _check_output(spark: SparkSession, config: JobConfig) -> None:
    if config.output.table:
        sink.check_table_free(spark, config.output.table)
        return
    if config.input.path:
        sink.check_apart(config.input.path, config.output.path)
    sink.check_path_free(spark, config.output.path)


def _read(spark: SparkSession, config: JobConfig) -> DataFrame:
    given = config.input
    if given.table:
        df = source.read_table(spark, given.table)
    else:
        df = source.read_path(spark, given.path, format=given.format, options=given.options)
    missing = [name for name in given.keep if name not in df.columns]
    if missing:
        raise ColumnError(
            f"input.keep names {missing[0]!r}, which the input has not; it has "
            f"{', '.join(df.columns)}."
        )
    return df.repartition(config.run.partitions) if config.run.partitions else df


def _vectors(df: DataFrame, plan: Plan, config: EmbedConfig) -> DataFrame:
    return embed_plan(
        df,
        plan,
        text=config.text,
        role=_column(df, config.role_column) if config.role_column else config.role,
        instruction=(
            _column(df, config.instruction_column)
            if config.instruction_column
            else config.instruction or None
        ),
        prefix=config.prefix,
    )


def _column(df: DataFrame, name: str) -> Column:
    return F.col(quoted(resolve_column(df, name).name))


def _kept(vectors: DataFrame, df: DataFrame, config: JobConfig) -> DataFrame:
    if not config.input.keep:
        return vectors
    return vectors.drop(*(name for name in df.columns if name not in config.input.keep))


def _write(df: DataFrame, config: JobConfig) -> None:
    output = config.output
    options = {**sink.parquet_options(f"{config.embed.prefix}embedding"), **output.options}
    if output.format == "delta":
        options = dict(output.options)
    if output.table:
        sink.write_table(df, output.table, format=output.format, options=options)
    else:
        sink.write_path(df, output.path, format=output.format, options=options)


def _counts(prefix: str) -> list[Column]:
    """What is counted while the rows are written: no second pass over them."""
    status = F.col(f"{prefix}status")
    return [
        F.count(F.lit(1)).alias("rows"),
        *(F.count_if(status == name).alias(name) for name in _STATUSES),
        F.count_if(F.col(f"{prefix}truncated")).alias("truncated"),
        F.sum(f"{prefix}n_tokens").alias("tokens"),
    ]


def _account(
    plan: Plan, config: JobConfig, rows_in: int, counts: dict[str, int], seconds: float
) -> dict[str, Any]:
    fingerprint = fingerprint_of(plan)
    return {
        "rows_in": rows_in,
        **counts,
        "seconds": round(seconds, 3),
        "texts_per_second": round(counts["ok"] / seconds, 1),
        "tokens_per_second": round(counts["tokens"] / seconds, 1),
        "model": plan.spec.checkpoint or plan.spec.model,
        "dim": plan.recipe.dim,
        "fingerprint": fingerprint.digest,
        "fingerprint_parts": fingerprint.as_dict(),
        "output": config.output.table or config.output.path,
        "versions": {"e5spark": __version__, "python": platform.python_version(), **_versions()},
    }


def fingerprint_of(plan: Plan) -> Fingerprint:
    """Returns what makes the vectors of this plan comparable with others."""
    assert plan.weights is not None
    return Fingerprint(
        weights=plan.weights.weights,
        tokenizer=plan.weights.tokenizer,
        recipe=plan.recipe,
        precision=plan.spec.decided_precision,
    )


def _versions() -> dict[str, str]:
    """The driver's packages; read from their metadata, because importing torch takes seconds."""
    found = {}
    for name in ("pyspark", "torch", "transformers", "tokenizers", "pyarrow", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _reconcile(account: Mapping[str, Any]) -> None:
    accounted = sum(account[name] for name in _STATUSES)
    if not account["rows_in"] == account["rows"] == accounted:
        raise E5SparkError(
            f"{account['rows_in']} rows were read, {account['rows']} written, {accounted} have a "
            f"known status; {account['output']} must not be used. This is a bug in e5spark."
        )
