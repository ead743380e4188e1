"""The embedding job: reads a table, adds vectors, and accounts for every row."""

import time
from dataclasses import dataclass, replace
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructField, StructType

from e5spark.errors import ConfigError, ConflictError, OptionError
from e5spark.job import run_page, streaming
from e5spark.job import source as sources
from e5spark.job.config import JobConfig, SchemaMode
from e5spark.job.evolution import conformed, evolve, evolved
from e5spark.job.history import locked, utc_now
from e5spark.job.quality import Quality
from e5spark.job.report import Counts, RunReport, versions
from e5spark.job.source import Source
from e5spark.job.sync import SyncContext, sync
from e5spark.job.trace import Trace
from e5spark.job.watch import Watch
from e5spark.model.fingerprint import Weights
from e5spark.model.output_type import Calibration
from e5spark.model.resolve import Plan
from e5spark.model.spec import ModelOptions, ModelSpec, Precision, model_spec
from e5spark.names import redacted
from e5spark.spark import calibration as ranges
from e5spark.spark.columns import TextColumns
from e5spark.spark.embedding import embed_plan, plan_for_table, plan_model
from e5spark.spark.results import provenance
from e5spark.spark.sampling import sample_texts
from e5spark.tables.ledger.layout import has_commits
from e5spark.tables.ledger.ledger import Ledger
from e5spark.tables.ledger.manifest import Manifest, read_manifest
from e5spark.tables.ledger.records import Record
from e5spark.tables.sinks.commit import Commits
from e5spark.tables.sinks.delta_columns import DeltaColumns
from e5spark.tables.sinks.files import check_options, parquet_options
from e5spark.tables.sinks.open import open_sink
from e5spark.tables.sinks.parquet import ParquetSink
from e5spark.tables.sinks.paths import check_apart, check_path, overlap
from e5spark.tables.sinks.protocol import Sink
from e5spark.tables.spark_settings import described
from e5spark.tables.storage.open import open_storage


def run(spark: SparkSession, config: JobConfig) -> RunReport:
    """Embeds the new and changed rows of a table as the config says, and returns the report.

    Everything that can be checked before a task runs is checked then: the output, the model, the
    input and its columns, in this order. The same command finishes a run that was killed.

    Raises:
        ConflictError: If the output was not written by e5spark, has other vectors or columns that
            cannot follow the input's, or is locked by another run; or if the canaries have other
            vectors.
        ModelError: If the checkpoint is unknown, absent or incomplete.
        OptionError: If an option is wrong, or no worker has the device that is named.
        InputError: If the input cannot be read, or its columns or ids break the contract.
    """
    job = open_job(spark, config)
    plan, config = job.plan, job.config
    started, started_at = time.monotonic(), utc_now()
    trace = Trace(config.report, plan)
    counts, quality = _sync(spark, job, trace)
    report = RunReport(
        counts=counts,
        quality=quality,
        seconds=time.monotonic() - started,
        model=plan.spec.checkpoint or plan.spec.model,
        dim=plan.recipe.dim,
        fingerprint=plan.fingerprint.digest,
        fingerprint_parts=plan.fingerprint.as_dict(),
        output=config.output.table or config.output.path,
        versions=versions(spark),
    )
    storage = open_storage(spark, job.target.location)
    moments = (started_at, utc_now())
    return replace(report, page=run_page.write(storage, config, plan, report, trace, moments))


@dataclass(frozen=True, kw_only=True)
class OpenJob:
    """A job whose output, model and input are open; nothing of it has run.

    Attributes:
        config: The job; it reads a fixed version if the output is columns of the input.
        plan: The model.
        source: The input; without rows if it is a stream.
        target: The output, which need not exist yet.
        stream: The input as a stream; None if it is none.
        schema: The columns that a new output gets.
    """

    config: JobConfig
    plan: Plan
    source: Source
    target: Sink
    stream: DataFrame | None
    schema: StructType

    @property
    def results(self) -> list[StructField]:
        """The columns that the job adds to those of its input."""
        return list(self.schema.fields[len(self.source.columns) :])

    @property
    def properties(self) -> dict[str, str]:
        """The properties of a new output."""
        return {f"e5spark.{key}": value for key, value in provenance(self.plan).items()}

    @property
    def schema_mode(self) -> SchemaMode:
        """Whether the output follows the columns of the input."""
        return self.config.run.schema if self.config.output.write == "rows" else "refuse"


def open_job(spark: SparkSession, config: JobConfig) -> OpenJob:
    """Returns a job with its output, model and input, each of them checked, in this order.

    Raises:
        E5SparkError: As ``run``.
    """
    target, config = open_output(spark, config)
    plan = plan_output(spark, config, target.location)
    stream = None
    if config.input.trigger == "available_now":
        stream, source = streaming.open_stream(spark, config)
    else:
        source = sources.open_source(spark, config)
    check_device(spark, plan)
    schema = sources.embedded(source.rows, plan, source).schema
    return OpenJob(
        config=config, plan=plan, source=source, target=target, stream=stream, schema=schema
    )


def check_table(spark: SparkSession, job: OpenJob, ledger: Ledger) -> Commits:
    """Returns commits to the output, once it is known that they can begin; nothing is changed.

    Raises:
        ConflictError: If the output has other vectors or columns that cannot follow the input's,
            or rows that no commit has put there.
    """
    commits = Commits(ledger, job.target, schema=job.schema, id=job.source.id)
    ledger.check(manifest_of(spark, job))
    if has_commits(ledger.storage):
        evolved(commits.as_stored(), job.source, job.results, mode=job.schema_mode)
    commits.check(job.properties)
    return commits


def check_device(spark: SparkSession, plan: Plan) -> None:
    """Checks that a worker has the device that the options name.

    One task embeds one text before the input is read: otherwise the lack of the device would show
    only once the work list has been written. ``auto`` and ``cpu`` work everywhere.

    Raises:
        OptionError: From the worker, inside Spark's error, if it lacks the device.
    """
    if plan.spec.device in ("auto", "cpu"):
        return
    row = spark.createDataFrame([("device",)], "text string").coalesce(1)
    embed_plan(row, plan, TextColumns(text="text", role="passage")).collect()


def compact(spark: SparkSession, config: JobConfig, *, target_bytes: int) -> dict[str, Any]:
    """Merges the small files of the output; no row changes.

    Returns:
        ``output``, ``rows`` in the merged files, ``files_before`` and ``files_after``.

    Raises:
        OptionError: If the size is not positive.
        ConflictError: If the output was not written by e5spark, or is locked by another run.
    """
    if target_bytes < 1:
        raise OptionError("The size of a file (--megabytes) must be a positive whole number.")
    target = _parquet(spark, config)
    files = open_storage(spark, target.location) if target.location else None
    manifest = read_manifest(files) if files is not None else None
    if files is None or manifest is None:
        raise ConflictError(
            f"{target.name} is not a table that e5spark has written; run e5spark embed first."
        )
    if manifest.table != target.kind:
        raise ConflictError(
            f"{target.name} is a {manifest.table} table, and e5spark compact merges the files of "
            "Parquet tables only. For a Delta table, use OPTIMIZE."
        )
    schema = StructType.fromJson(dict(manifest.schema))
    with locked(files, "compact", versions(spark)) as (ledger, counts):
        commits = Commits(ledger, target, schema=schema, id=manifest.id)
        commits.check_all_recorded()
        commits.recover(spark)
        schema = commits.as_stored().schema  # which a killed run may have been about to change
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
        counts |= {
            "rows": record.rows,
            "files_before": files_before,
            "files_after": target.count_files(),
        }
    return {"output": redacted(target.name), **counts}


def calibrate(spark: SparkSession, config: JobConfig, *, sample: int) -> Calibration:
    """Returns the ranges of the components of the job's vectors, over a sample of its input.

    Args:
        spark: The session.
        config: The job.
        sample: Rows of the sample.

    Raises:
        ModelError: If the checkpoint is unknown, absent or incomplete.
        InputError: If the input cannot be read or its columns break the contract.
    """
    options: ModelOptions = {
        **config.model.options,
        "output_type": "float32",
        "calibration": None,
    }
    plan = plan_model(model_spec(config.model.name, options), spark=spark, required=True)
    df = sources.read(spark, config)
    return ranges.calibrate(df, plan, sources.texts_of(df, config.embed), sample=sample)


def sample(
    spark: SparkSession, config: JobConfig, spec: ModelSpec, *, rows: int
) -> tuple[list[str], list[str]]:
    """Returns the texts of a sample of the job's input, and the prefix of each text.

    Args:
        spark: The session.
        config: The job.
        spec: The model, for the prompts.
        rows: Rows of the sample.

    Raises:
        InputError: If the input cannot be read, has no text, or its columns break the contract.
    """
    df = sources.read(spark, config)
    texts = sources.texts_of(df, config.embed)
    return sample_texts(df, plan_model(spec), texts, rows=rows)


def open_output(spark: SparkSession, config: JobConfig) -> tuple[Sink, JobConfig]:
    """Returns the table that a job writes, which need not exist yet, and the job that reads it.

    The job is another one if the output is columns of the input: it reads a fixed version.

    Raises:
        ConfigError: If the path or an option cannot be used.
        ConflictError: If something exists there that e5spark did not write.
        InputError: If the session cannot reach it, or does not have the format.
    """
    if config.output.write == "columns":
        return _columns(spark, config)
    return _target(spark, config), config


def _target(spark: SparkSession, config: JobConfig) -> Sink:
    output = config.output
    _check_apart(config)
    return open_sink(
        spark,
        output.format,
        path=output.path,
        table=output.table,
        options=output.options,
        vectors=sources.vector_names(config.embed),
    )


def _columns(spark: SparkSession, config: JobConfig) -> tuple[Sink, JobConfig]:
    """Returns the input table as the sink, and the job that reads its current version."""
    table = config.input
    inputs = (table.id, *sources.input_columns(config.embed))
    target = DeltaColumns(spark, path=table.path, table=table.table, inputs=inputs)
    pinned = replace(
        table,
        path=target.location,
        table="",
        format="delta",
        columns=inputs,
        options={"versionAsOf": str(target.version)},
    )
    return target, replace(config, input=pinned)


def _check_apart(config: JobConfig) -> None:
    check_path(config.output.path)
    if config.input.path and config.output.path:
        check_apart(config.input.path, config.output.path)
    checkpoint = config.input.checkpoint_location
    for path in filter(None, (config.input.path, config.output.path)):
        if checkpoint and overlap(checkpoint, path):
            raise ConfigError(
                f"input.checkpoint_location {redacted(checkpoint)} and {redacted(path)} are the "
                "same directory, or one lies inside the other; give the checkpoint a directory of "
                "its own."
            )


def _parquet(spark: SparkSession, config: JobConfig) -> ParquetSink:
    output = config.output
    _check_apart(config)
    check_options(output.options)
    options = {**parquet_options(sources.vector_names(config.embed)), **output.options}
    return ParquetSink(spark, path=output.path, table=output.table, options=options)


def _sync(spark: SparkSession, job: OpenJob, trace: Trace) -> tuple[Counts, Quality]:
    config, plan, source, target = job.config, job.plan, job.source, job.target
    if not target.location:
        target.create(job.schema, job.properties)
    files = open_storage(spark, target.location)
    with locked(files, "embed", versions(spark)) as (ledger, run_counts):
        commits = check_table(spark, job, ledger)
        commits.begin(manifest_of(spark, job), job.properties)
        with described(spark, "recover what an earlier run has recorded"):
            recovered = commits.as_stored().recover(spark)
        commits = commits.as_stored()
        if source.id is not None or not ledger.has_finished:  # otherwise the run writes no row
            fields = evolved(commits, source, job.results, mode=job.schema_mode)
            commits, source = evolve(commits, fields), conformed(source, fields)
        watch = Watch(config.quality, plan, commits.ledger, versions(spark))
        context = SyncContext(
            run=config.run, plan=plan, source=source, commits=commits, watch=watch, trace=trace
        )
        if job.stream is not None:
            counts = streaming.run_stream(spark, context, config, job.stream, recovered=recovered)
        else:
            counts = sync(spark, context, recovered=recovered)
        run_counts.update(counts.as_dict())
        return counts, watch.finish()


def plan_output(spark: SparkSession, config: JobConfig, location: str) -> Plan:
    """Returns the job's model, as the vectors of its output need it.

    A table that exists decides the precision that ``auto`` means, and the identity of the weights.

    Args:
        spark: The session.
        config: The job.
        location: The output's directory; empty if there is none.

    Raises:
        ModelError: If the checkpoint is unknown, absent or incomplete.
        OptionError: If an option contradicts it.
    """
    stored = read_manifest(open_storage(spark, location)) if location else None
    plan = plan_model(
        model_spec(config.model.name, config.model.options),
        spark=spark,
        required=True,  # a job does not leave the search for the model to its executors
        stored=None if stored is None else _float_precision(stored),
    )
    if stored is None or stored.fingerprint == plan.fingerprint.digest:
        return plan
    names = ("weights", "tokenizer")
    return plan_for_table(plan, Weights(**{name: str(stored.parts.get(name)) for name in names}))


def _float_precision(stored: Manifest) -> Precision | None:
    """The precision of a table's vectors; None for int8, which only an int8 model can have."""
    precisions: dict[Any, Precision] = {"fp32": "fp32", "bf16": "bf16"}
    return precisions.get(stored.parts.get("precision"))


def manifest_of(spark: SparkSession, job: OpenJob) -> Manifest:
    """Returns the manifest of a new output."""
    return Manifest(
        fingerprint=job.plan.fingerprint.digest,
        parts=job.plan.fingerprint.as_dict(),
        schema=job.schema.jsonValue(),
        dim=job.plan.recipe.dim,
        id=job.source.id,
        table=job.target.kind,
        versions=versions(spark),
    )
