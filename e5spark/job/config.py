"""A job as frozen dataclasses, and which of its keys go together."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from e5spark.errors import ConfigError
from e5spark.model.spec import ModelOptions

InputFormat = Literal["parquet", "delta", "csv", "jsonl", "text"]
OutputFormat = Literal["parquet", "delta"]
Write = Literal["rows", "columns"]
OnDuplicate = Literal["refuse", "first"]
Trigger = Literal["batch", "available_now"]


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """``[input]``: the table whose texts are embedded; ``conf/embed.toml`` explains each key."""

    path: str = ""
    table: str = ""
    format: InputFormat = "parquet"
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
        """Whether a run sees only what has come: since the last one, or since a version."""
        return self.trigger == "available_now" or self.change_feed


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """``[embed]``: which texts, and in which role."""

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
    """``[output]``: where the vectors go."""

    path: str = ""
    table: str = ""
    format: OutputFormat = "parquet"
    write: Write = "rows"
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """``[run]``: how the job runs."""

    partitions: int = 0
    max_error_rate: float = 0.0
    delete_missing: bool = False
    chunk_rows: int = 0
    concurrent_chunks: int = 2


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """A whole job."""

    input: InputConfig
    embed: EmbedConfig
    model: ModelConfig
    output: OutputConfig
    run: RunConfig
    spark: Mapping[str, str]


def check(job: JobConfig) -> None:
    """Raises unless the keys of a job go together.

    Raises:
        ConfigError: If not.
    """
    for name, section in (("input", job.input), ("output", job.output)):
        if bool(section.path) == bool(section.table):
            raise ConfigError(f"[{name}] needs either path or table, and not both.")
    _check_input(job.input)
    if bool(job.embed.role) == bool(job.embed.role_column):
        raise ConfigError(
            "[embed] needs either role ('query' or 'passage') or role_column, and not both; E5's "
            "vectors are wrong without the right role."
        )
    if job.embed.instruction and job.embed.instruction_column:
        raise ConfigError("[embed] has instruction and instruction_column; give one.")
    _check_run(job.run)
    _check_ids(job)
    if job.input.is_partial:
        _check_arrivals(job)
    if job.output.write == "columns":
        _check_columns(job)


def _check_input(given: InputConfig) -> None:
    if given.table and (given.format != "parquet" or (given.options and not given.is_partial)):
        raise ConfigError("input.format and input.options are for path, not for table.")
    if {key.lower() for key in given.options} & {"readchangefeed", "readchangedata"}:
        raise ConfigError(
            "[input.options] asks for a change data feed; set input.change_feed = true, or what a "
            "row was before a change would be embedded as well."
        )
    if given.trigger == "available_now" and not given.checkpoint_location:
        raise ConfigError(
            'input.trigger = "available_now" needs input.checkpoint_location: a directory of its '
            "own, in which Spark notes what it has read."
        )


def _check_ids(job: JobConfig) -> None:
    given = job.input
    if given.id and given.hash_id:
        raise ConfigError("[input] has id and hash_id; give one of them.")
    has_ids = bool(given.id) or given.hash_id
    if given.on_duplicate == "first" and not has_ids:
        raise ConfigError("input.on_duplicate is for input.id, which is not given.")
    if job.run.delete_missing and not has_ids:
        raise ConfigError("run.delete_missing needs input.id, to know what is missing.")


def _check_arrivals(job: JobConfig) -> None:
    given = job.input
    if given.change_feed:
        _check_changes(given)
    elif job.run.delete_missing:
        raise ConfigError(
            'input.trigger = "available_now" reads what has come, which does not say what has '
            "left; so it cannot go with run.delete_missing. Set input.change_feed = true, if the "
            "input is a Delta table with a change data feed, or read it as a batch."
        )
    if not (given.id or given.hash_id):
        raise ConfigError(
            'input.trigger = "available_now" needs input.id (or input.hash_id = true): what was '
            "read and not committed is read again, and must be known by its ids."
        )


def _check_changes(given: InputConfig) -> None:
    options = {key.lower() for key in given.options}
    if given.path and given.format != "delta":
        raise ConfigError(
            "input.change_feed reads the change data feed of a Delta table; give input.format = "
            '"delta".'
        )
    if not given.id:
        raise ConfigError(
            "input.change_feed needs input.id, a column that a row keeps when it changes; "
            "input.hash_id is made of its texts."
        )
    if given.trigger == "batch" and not options & {"startingversion", "startingtimestamp"}:
        raise ConfigError(
            "input.change_feed needs startingVersion or startingTimestamp in [input.options]; or "
            'input.trigger = "available_now", which notes how far it came.'
        )
    if options & {"maxfilespertrigger", "maxbytespertrigger"}:
        raise ConfigError(
            "maxFilesPerTrigger and maxBytesPerTrigger may cut a commit in two, and then "
            "input.change_feed would remove rows that were written anew; leave them out."
        )


def _check_columns(job: JobConfig) -> None:
    """The output is the input, of which rows must be found again and none may come or go."""
    given, output = job.input, job.output
    if (given.path, given.table) != (output.path, output.table):
        raise ConfigError(
            'output.write = "columns" adds columns to the input table; give the same path or table '
            "in [input] and [output]."
        )
    if output.format != "delta" or (given.path and given.format != "delta"):
        raise ConfigError('output.write = "columns" is for tables of format "delta".')
    if not given.id:
        raise ConfigError('output.write = "columns" needs input.id, to find rows again.')
    refused = {
        "input.columns": given.columns,
        "input.hash_id": given.hash_id,
        "input.options": given.options,
        "input.trigger": given.trigger != "batch",
        "input.change_feed": given.change_feed,
        "output.options": output.options,
        "run.delete_missing": job.run.delete_missing,
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
    for name, least in (("partitions", 0), ("chunk_rows", 0), ("concurrent_chunks", 1)):
        if getattr(run, name) < least:
            raise ConfigError(f"run.{name} is {getattr(run, name)}; it must be {least} or more.")
