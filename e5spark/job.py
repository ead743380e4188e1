"""The embedding job: a table in, a table with vectors out, and an account of every row."""

import functools
import importlib.metadata
import operator
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyspark.sql import Column, DataFrame, Observation, SparkSession
from pyspark.sql import functions as F

from e5spark import __version__
from e5spark.config import EmbedConfig, InputConfig, JobConfig
from e5spark.errors import E5SparkError, GateError
from e5spark.plan import Plan
from e5spark.quantize import Calibration
from e5spark.spark import ranges
from e5spark.spark.embed import (
    Texts,
    embed_plan,
    plan_model,
    quoted,
    resolve_column,
    result_names,
)
from e5spark.spark.sampling import sample_texts
from e5spark.spec import ModelOptions, ModelSpec, model_spec
from e5spark.tables import sink, source

_STATUSES = ("ok", "null_text", "empty_text", "error")
_NO_LIMIT = 1 << 30


def run(spark: SparkSession, config: JobConfig) -> dict[str, Any]:
    """Embeds a table as the config says, and returns the account of the run.

    Everything that can be checked before a task runs is checked before one runs: the output, the
    model, the input and its columns, in this order.

    Raises:
        ConflictError: If the output exists.
        ModelError: If the checkpoint is unknown, absent or incomplete.
        InputError: If the input cannot be read or its columns break the contract.
    """
    _check_output(spark, config)
    # A job does not leave finding the model to its executors.
    plan = plan_model(model_spec(config.model.name, config.model.options), required=True)
    fingerprint = plan.fingerprint
    df = read(spark, config)
    texts = texts_of(df, config.embed)
    names = result_names(plan, texts)
    before, after = Observation("e5spark_in"), Observation("e5spark_out")
    vectors = embed_plan(df.observe(before, F.count(F.lit(1)).alias("rows_in")), plan, texts)
    vectors = vectors.drop(*(name for name in df.columns if not _is_kept(df, name, config)))
    started = time.monotonic()
    _write(vectors.observe(after, *_counts(plan, names)), config, names)
    seconds = time.monotonic() - started
    counts = {name: int(value or 0) for name, value in {**before.get, **after.get}.items()}
    _reconcile(counts, len(names), _output(config))
    return {
        **counts,
        "lost_token_share": round(counts["lost_tokens"] / max(counts["tokens"], 1), 6),
        "seconds": round(seconds, 3),
        "texts_per_second": round(counts["ok"] / seconds, 1),
        "tokens_per_second": round((counts["tokens"] - counts["lost_tokens"]) / seconds, 1),
        "model": plan.spec.checkpoint or plan.spec.model,
        "dim": plan.recipe.dim,
        "fingerprint": fingerprint.digest,
        "fingerprint_parts": fingerprint.as_dict(),
        "output": _output(config),
        "versions": {
            "e5spark": __version__,
            "python": platform.python_version(),
            "spark": spark.version,
            **_versions(),
        },
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
    df = read(spark, config)
    return ranges.calibrate(df, plan, texts_of(df, config.embed), sample=sample)


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
    df = read(spark, config)
    return sample_texts(df, plan_model(spec), texts_of(df, config.embed), rows=rows)


def check_errors(account: Mapping[str, Any], max_error_rate: float) -> None:
    """Raises if more texts than allowed ended in an error.

    Raises:
        GateError: If so; the good rows are written, the others have ``status = 'error'``.
    """
    texts = sum(account[name] for name in _STATUSES)
    if account["error"] > max_error_rate * texts:
        raise GateError(
            f"{account['error']} of {texts} texts could not be embedded, more than "
            f"run.max_error_rate = {max_error_rate} allows. All rows are in {account['output']}; "
            "the column error of those with status = 'error' says why."
        )


def read(spark: SparkSession, config: JobConfig) -> DataFrame:
    """Returns the columns of the input table that the job needs, repartitioned as it says.

    Raises:
        InputError: If it cannot be read.
        ColumnError: If a column that shall be read or pass through is missing.
    """
    df = _source(spark, config.input)
    if config.input.keep:
        wanted = [*config.input.keep, *_read_columns(config.embed)]
        names = dict.fromkeys(resolve_column(df, name).name for name in wanted)
        df = df.select(*(F.col(quoted(name)) for name in names))
    return df.repartition(config.run.partitions) if config.run.partitions else df


def _read_columns(config: EmbedConfig) -> list[str]:
    texts = [config.text] if isinstance(config.text, str) else list(config.text)
    return [*texts, *(name for name in (config.role_column, config.instruction_column) if name)]


def _is_kept(df: DataFrame, name: str, config: JobConfig) -> bool:
    """Whether a column passes through: some are read for their texts or roles alone."""
    kept = config.input.keep
    return not kept or name in [resolve_column(df, each).name for each in kept]


def texts_of(df: DataFrame, config: EmbedConfig) -> Texts:
    """Returns what is embedded, with the columns that hold roles and instructions.

    Raises:
        ColumnError: If one of those is missing.
    """
    role, instruction = config.role_column, config.instruction_column
    return Texts(
        text=config.text,
        role=_column(df, role) if role else config.role,
        instruction=_column(df, instruction) if instruction else config.instruction or None,
        join=config.join,
        prefix=config.prefix,
    )


def _column(df: DataFrame, name: str) -> Column:
    return F.col(quoted(resolve_column(df, name).name))


def _source(spark: SparkSession, given: InputConfig) -> DataFrame:
    if given.table:
        return source.read_table(spark, given.table)
    return source.read_path(spark, given.path, format=given.format, options=given.options)


def _check_output(spark: SparkSession, config: JobConfig) -> None:
    if config.output.table:
        sink.check_table_free(spark, config.output.table)
        return
    if config.input.path:
        sink.check_apart(config.input.path, config.output.path)
    sink.check_path_free(spark, config.output.path)


def _write(df: DataFrame, config: JobConfig, names: Sequence[Mapping[str, str]]) -> None:
    output = config.output
    options = dict(output.options)
    if output.format == "parquet":
        options = {**sink.parquet_options([one["embedding"] for one in names]), **options}
    if output.table:
        sink.write_table(df, output.table, format=output.format, options=options)
    else:
        sink.write_path(df, output.path, format=output.format, options=options)


def _output(config: JobConfig) -> str:
    return config.output.table or config.output.path


def _counts(plan: Plan, names: Sequence[Mapping[str, str]]) -> list[Column]:
    """What is counted while the rows are written, over all text columns: no second pass.

    A text that is split is counted once, by its first window; its tokens by all of them.
    """
    first = F.lit(True)
    if plan.recipe.long_text == "split":
        first = F.col(quoted(names[0]["window"])) == 0
    # Only a cut text has more tokens than the limit; a mean's are those of all its windows.
    most = plan.recipe.max_tokens if plan.recipe.long_text == "truncate" else _NO_LIMIT
    return [
        F.count(F.lit(1)).alias("rows"),
        *(_total(names, "status", _is(status, first)).alias(status) for status in _STATUSES),
        _total(names, "truncated", lambda flag: flag.cast("int")).alias("truncated"),
        _total(names, "prompted", lambda flag: (flag & first).cast("int")).alias("prompted"),
        _total(names, "n_tokens", lambda tokens: tokens).alias("tokens"),
        _total(names, "n_tokens", lambda n: F.greatest(n - most, F.lit(0))).alias("lost_tokens"),
    ]


def _total(
    names: Sequence[Mapping[str, str]], field: str, count: Callable[[Column], Column]
) -> Column:
    """The sum of something over all rows, and over the text columns."""
    sums = [F.sum(count(F.col(quoted(one[field])))) for one in names]
    return functools.reduce(operator.add, sums)


def _is(status: str, first: Column) -> Callable[[Column], Column]:
    return lambda column: ((column == status) & first).cast("int")


def _versions() -> dict[str, str]:
    """The driver's packages; read from their metadata, because importing torch takes seconds."""
    found = {}
    for name in ("pyspark", "torch", "transformers", "tokenizers", "pyarrow", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _reconcile(counts: Mapping[str, int], columns: int, output: str) -> None:
    accounted = sum(counts[name] for name in _STATUSES)
    if accounted != counts["rows_in"] * columns:
        raise E5SparkError(
            f"{counts['rows_in']} rows were read, {counts['rows']} written, and {accounted} texts "
            f"have a known status; {output} must not be used. This is a bug in e5spark."
        )
