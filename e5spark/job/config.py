"""A job as frozen dataclasses, and the rules for keys that depend on each other."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from e5spark.errors import ConfigError
from e5spark.model.spec import ModelOptions
from e5spark.names import has_credentials, is_table_name, redacted
from e5spark.tables.sinks.registry import SINKS

InputFormat = Literal["parquet", "delta", "csv", "jsonl", "text"]
Write = Literal["rows", "columns"]
OnDuplicate = Literal["refuse", "first"]
Trigger = Literal["batch", "available_now"]
SchemaMode = Literal["evolve", "refuse"]
Drift = Literal["warn", "fail", "ignore"]
Examples = Literal["none", "ids", "texts"]
_MOST_SAMPLED = 10_000  # all pairs of them are compared on the driver


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """``[input]``: the table whose texts are embedded; ``conf/embed.toml`` explains each key."""

    path: str = ""
    table: str = ""
    format: InputFormat = "parquet"
    schema: str = ""
    where: str = ""
    select: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    id: str = ""
    hash_id: bool = False
    on_duplicate: OnDuplicate = "refuse"
    trigger: Trigger = "batch"
    checkpoint_location: str = ""
    change_feed: bool = False
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_partial(self) -> bool:
        """Whether a run reads only what is new since the last run, or since a version."""
        return self.trigger == "available_now" or self.change_feed


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """``[embed]``: the texts and their role."""

    text: str | tuple[str, ...]
    join: str | None = None
    role: str = ""
    role_column: str = ""
    instruction: str = ""
    instruction_column: str = ""
    column_prefix: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """``[model]``: the checkpoint and the other keywords of ``e5spark.model.spec.ModelSpec``."""

    name: str
    options: ModelOptions


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """``[output]``: the table of the vectors."""

    path: str = ""
    table: str = ""
    format: str = "parquet"
    write: Write = "rows"
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """``[run]``: how the job runs."""

    partitions: int = 0
    max_error_rate: float = 0.0
    delete_missing: bool = False
    refresh_columns: bool = True
    schema: SchemaMode = "evolve"
    chunk_rows: int = 0
    concurrent_chunks: int = 2
    file_megabytes: int = 0
    price_per_hour: float = 0.0


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """``[quality]``: what the vectors of a run must be like."""

    canaries: bool = True
    min_vectors: int = 1000
    max_norm_error: float = 0.001
    max_equal_share: float = 0.2
    max_truncated_share: float = 1.0
    min_pair_cosine: float | None = None
    max_pair_cosine: float | None = None
    drift: Drift = "warn"
    max_cosine_drift: float = 0.05
    max_share_drift: float = 0.1


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """``[report]``: what a run leaves to look at."""

    html: bool = True
    sample: int = 1500
    examples: Examples = "ids"


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """A whole job."""

    input: InputConfig
    embed: EmbedConfig
    model: ModelConfig
    output: OutputConfig
    run: RunConfig
    quality: QualityConfig
    report: ReportConfig = field(default_factory=ReportConfig)
    spark: Mapping[str, str]


def check(job: JobConfig) -> None:
    """Checks the rules for keys of a job that depend on each other.

    Raises:
        ConfigError: If keys contradict each other, or a key lacks another key that it needs.
    """
    for name, section in (("input", job.input), ("output", job.output)):
        if bool(section.path) == bool(section.table):
            raise ConfigError(f"[{name}] needs either path or table, and not both.")
        _check_name(f"{name}.table", section.table)
    _check_credentials("input.path", job.input.path)
    _check_credentials("input.checkpoint_location", job.input.checkpoint_location)
    _check_credentials("output.path", job.output.path)
    if job.output.format not in SINKS:
        raise ConfigError(
            f"output.format is {job.output.format!r}; it must be one of {', '.join(SINKS)}."
        )
    _check_input(job.input)
    if bool(job.embed.role) == bool(job.embed.role_column):
        raise ConfigError(
            "[embed] needs either role ('query' or 'passage') or role_column, and not both; E5's "
            "vectors are wrong without the right role."
        )
    if job.embed.instruction and job.embed.instruction_column:
        raise ConfigError("[embed] has instruction and instruction_column; give one.")
    _check_run(job.run)
    _check_files(job)
    _check_quality(job.quality)
    _check_report(job.report)
    _check_ids(job)
    if job.input.is_partial:
        _check_partial(job)
    if job.output.write == "columns":
        _check_columns(job)


def _check_name(key: str, table: str) -> None:
    if table and not is_table_name(table):
        raise ConfigError(
            f"{key} is {table!r}; it must be a name such as catalog.schema.table. Put a part with "
            "other characters than letters, digits and _ in backticks."
        )


def _check_credentials(key: str, path: str) -> None:
    if has_credentials(path):
        raise ConfigError(
            f"{key} has a user and a password, which Spark would log: {redacted(path)}. Take them "
            "out, and give them to Spark's file system, such as fs.s3a.access.key and "
            "fs.s3a.secret.key in a credential provider."
        )


def _check_input(table: InputConfig) -> None:
    if table.table and (table.format != "parquet" or (table.options and not table.is_partial)):
        raise ConfigError("input.format and input.options are for path, not for table.")
    if {key.lower() for key in table.options} & {"readchangefeed", "readchangedata"}:
        raise ConfigError(
            "[input.options] asks for a change data feed; set input.change_feed = true instead; "
            "otherwise rows would also be embedded as they were before a change."
        )
    if table.schema and (table.table or table.format != "jsonl"):
        raise ConfigError(
            'input.schema is for path with input.format = "jsonl"; other tables have a schema: '
            "cast columns with input.select."
        )
    if table.trigger == "available_now" and not table.checkpoint_location:
        raise ConfigError(
            'input.trigger = "available_now" needs input.checkpoint_location: a directory of its '
            "own, in which Spark records what it has read."
        )


def _check_ids(job: JobConfig) -> None:
    table = job.input
    if table.id and table.hash_id:
        raise ConfigError("[input] has id and hash_id; give one of them.")
    has_ids = bool(table.id) or table.hash_id
    if table.on_duplicate == "first" and not has_ids:
        raise ConfigError(
            "input.on_duplicate needs to know which rows are duplicates; set input.id or "
            "input.hash_id."
        )
    if job.run.delete_missing and not has_ids:
        raise ConfigError(
            "run.delete_missing needs to know what is missing; set input.id or input.hash_id."
        )


def _check_partial(job: JobConfig) -> None:
    table = job.input
    if table.change_feed:
        _check_change_feed(table)
    elif job.run.delete_missing:
        raise ConfigError(
            'input.trigger = "available_now" reads new rows only, which do not show what was '
            "deleted, so run.delete_missing cannot be used with it. Set input.change_feed = true "
            'if the input is a Delta table with a change data feed, or input.trigger = "batch".'
        )
    if not (table.id or table.hash_id):
        raise ConfigError(
            'input.trigger = "available_now" needs input.id (or input.hash_id = true): rows that '
            "were read and not committed are read again, and are recognised by their ids."
        )


def _check_change_feed(table: InputConfig) -> None:
    options = {key.lower() for key in table.options}
    if table.path and table.format != "delta":
        raise ConfigError(
            "input.change_feed reads the change data feed of a Delta table; give input.format = "
            '"delta".'
        )
    if not table.id:
        raise ConfigError(
            "input.change_feed needs input.id, a column that keeps its value when a row changes; "
            "the id of input.hash_id changes with the texts."
        )
    if table.where:
        raise ConfigError(
            "input.change_feed and input.where contradict each other: a row that no longer matches "
            "would stay in the output, as the feed reports no deletion. Read the whole table with "
            "run.delete_missing = true, or take input.where out."
        )
    if table.trigger == "batch" and not options & {"startingversion", "startingtimestamp"}:
        raise ConfigError(
            "input.change_feed needs startingVersion or startingTimestamp in [input.options]; or "
            'input.trigger = "available_now", which records how far it has read.'
        )
    if options & {"maxfilespertrigger", "maxbytespertrigger"}:
        raise ConfigError(
            "maxFilesPerTrigger and maxBytesPerTrigger may split a commit, and then "
            "input.change_feed would remove rows that the commit has rewritten; leave both out."
        )


def _check_columns(job: JobConfig) -> None:
    """Checks a job whose output is its input: ids identify rows, and no row comes or goes."""
    table, output = job.input, job.output
    if (table.path, table.table) != (output.path, output.table):
        raise ConfigError(
            'output.write = "columns" adds columns to the input table; give the same path or table '
            "in [input] and [output]."
        )
    if output.format != "delta" or (table.path and table.format != "delta"):
        raise ConfigError('output.write = "columns" is for tables of format "delta".')
    if not table.id:
        raise ConfigError('output.write = "columns" needs input.id, to identify the rows.')
    refused = {
        "input.columns": table.columns,
        "input.select": table.select,
        "input.where": table.where,
        "input.hash_id": table.hash_id,
        "input.options": table.options,
        "input.trigger": table.trigger != "batch",
        "input.change_feed": table.change_feed,
        "output.options": output.options,
        "run.delete_missing": job.run.delete_missing,
        "run.file_megabytes": job.run.file_megabytes,
        "model.long_text = split": job.model.options.get("long_text") == "split",
    }
    for name, value in refused.items():
        if value:
            raise ConfigError(
                f'{name} is for output.write = "rows"; with "columns" the table keeps its rows and '
                "its other columns."
            )


def _check_run(run: RunConfig) -> None:
    if not 0 <= run.max_error_rate <= 1:
        raise ConfigError("run.max_error_rate is a share from 0 to 1.")
    minimums = {
        "partitions": 0,
        "chunk_rows": 0,
        "concurrent_chunks": 1,
        "file_megabytes": 0,
        "price_per_hour": 0,
    }
    for name, minimum in minimums.items():
        if not getattr(run, name) >= minimum:
            raise ConfigError(f"run.{name} is {getattr(run, name)}; it must be {minimum} or more.")


def _check_files(job: JobConfig) -> None:
    if job.run.file_megabytes and job.model.options.get("long_text") == "split":
        raise ConfigError(
            'run.file_megabytes cannot be used with model.long_text = "split": how many rows a '
            "text becomes is known only once it is embedded. Take it out, and merge small files "
            "with e5spark compact."
        )


def _check_quality(quality: QualityConfig) -> None:
    for name in ("max_equal_share", "max_truncated_share", "max_share_drift"):
        if not 0 <= getattr(quality, name) <= 1:
            raise ConfigError(
                f"quality.{name} is {getattr(quality, name)}; it must be a share from 0 to 1."
            )
    for name, minimum in (("min_vectors", 1), ("max_norm_error", 0), ("max_cosine_drift", 0)):
        if not getattr(quality, name) >= minimum:
            raise ConfigError(
                f"quality.{name} is {getattr(quality, name)}; it must be {minimum} or more."
            )
    lowest, highest = quality.min_pair_cosine, quality.max_pair_cosine
    for name, cosine in (("min_pair_cosine", lowest), ("max_pair_cosine", highest)):
        if cosine is not None and not -1 <= cosine <= 1:
            raise ConfigError(f"quality.{name} is {cosine}; it must be a cosine from -1 to 1.")
    if lowest is not None and highest is not None and lowest > highest:
        raise ConfigError(
            f"quality.min_pair_cosine is {lowest} and quality.max_pair_cosine is {highest}; the "
            "smallest cosine that passes must not exceed the largest."
        )


def _check_report(report: ReportConfig) -> None:
    if not 0 <= report.sample <= _MOST_SAMPLED:
        raise ConfigError(
            f"report.sample is {report.sample}; it must be a number of rows from 0 to "
            f"{_MOST_SAMPLED:,}."
        )
