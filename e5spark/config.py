"""A job file to frozen dataclasses: strictly, so that a typo stops the job and not the table."""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from e5spark.errors import ConfigError
from e5spark.spec import ModelOptions

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
    keep: tuple[str, ...] = ()
    id: str = ""
    hash_id: bool = False
    on_duplicate: OnDuplicate = "refuse"
    trigger: Trigger = "batch"
    checkpoint: str = ""
    changes: bool = False
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """``[embed]``: which texts, and in which role."""

    text: str | tuple[str, ...]
    join: str | None = None
    role: str = ""
    role_column: str = ""
    instruction: str = ""
    instruction_column: str = ""
    prefix: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """``[model]``: the checkpoint and the other keywords of ``e5spark.spec.ModelSpec``."""

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
    in_flight: int = 2


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """A whole job file."""

    input: InputConfig
    embed: EmbedConfig
    model: ModelConfig
    output: OutputConfig
    run: RunConfig
    spark: Mapping[str, str]


_SECTIONS = {
    "input": InputConfig,
    "embed": EmbedConfig,
    "model": ModelConfig,
    "output": OutputConfig,
    "run": RunConfig,
}


def load(path: Path, overrides: Sequence[str] = ()) -> JobConfig:
    """Returns the job file with ``section.key=value`` overrides applied.

    Args:
        path: A TOML file.
        overrides: Values are TOML (``true``, ``3``, ``["a"]``); what is no TOML is a string.

    Raises:
        ConfigError: If the file cannot be read, a key is unknown, or a value has the wrong type.
    """
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"The job file {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from error
    for override in overrides:
        _override(data, override)
    return _job(data, str(path))


def load_model(name: str, overrides: Sequence[str] = ()) -> ModelConfig:
    """Returns a ``[model]`` section of a name and ``model.key=value`` overrides.

    Raises:
        ConfigError: If a key is unknown, of another section, or a value has the wrong type.
    """
    data: dict[str, Any] = {"model": {"name": name}}
    for override in overrides:
        _override(data, override)
    other = next((section for section in data if section != "model"), None)
    if other is not None:
        raise ConfigError(f"--set {other}....: only keys of model can be set here.")
    return _model(data, "--set")


def _job(data: dict[str, Any], path: str) -> JobConfig:
    for name, values in data.items():
        if name not in (*_SECTIONS, "spark"):
            raise ConfigError(
                f"{path}: unknown section [{name}].{_nearest(name, [*_SECTIONS, 'spark'])}"
            )
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: {name} is a value; it must be a section, [{name}].")
    job = JobConfig(
        input=InputConfig(**_section(data, "input", get_type_hints(InputConfig), path)),
        embed=EmbedConfig(**_section(data, "embed", get_type_hints(EmbedConfig), path)),
        model=_model(data, path),
        output=OutputConfig(**_section(data, "output", get_type_hints(OutputConfig), path)),
        run=RunConfig(**_section(data, "run", get_type_hints(RunConfig), path)),
        spark={key: _conf_text(value) for key, value in _flat(data.get("spark", {})).items()},
    )
    _check(job, path)
    return job


def _model(data: dict[str, Any], path: str) -> ModelConfig:
    hints = {"name": str, **get_type_hints(ModelOptions)}
    values = _section(data, "model", hints, path)
    # conf/embed.toml shows as "" what is not given: written out, it must mean the same.
    values = {key: value for key, value in values.items() if value != ""}
    if "name" not in values:
        raise ConfigError(f"{path}: [model] has no name; give a checkpoint or a directory.")
    return ModelConfig(name=values.pop("name"), options=cast(ModelOptions, values))


def _section(
    data: dict[str, Any], name: str, hints: Mapping[str, Any], path: str
) -> dict[str, Any]:
    values = data.get(name, {})
    for key in values:
        if key not in hints:
            raise ConfigError(
                f"{path}: unknown key {key!r} in [{name}].{_nearest(key, list(hints))}"
            )
    kind = _SECTIONS[name]
    for each in fields(kind):
        required = each.default is MISSING and each.default_factory is MISSING
        if required and kind is not ModelConfig and each.name not in values:
            raise ConfigError(f"{path}: [{name}] needs the key {each.name!r}.")
    return {
        key: _checked(value, hints[key], f"{path}: {name}.{key}") for key, value in values.items()
    }


def _check(job: JobConfig, path: str) -> None:
    for name, section in (("input", job.input), ("output", job.output)):
        if bool(section.path) == bool(section.table):
            raise ConfigError(f"{path}: [{name}] needs either path or table, and not both.")
    _check_input(job.input, path)
    if bool(job.embed.role) == bool(job.embed.role_column):
        raise ConfigError(
            f"{path}: [embed] needs either role ('query' or 'passage') or role_column, and not "
            "both; E5's vectors are wrong without the right role."
        )
    if job.embed.instruction and job.embed.instruction_column:
        raise ConfigError(f"{path}: [embed] has instruction and instruction_column; give one.")
    _check_run(job, path)
    if job.input.trigger == "available_now" or job.input.changes:
        _check_arrivals(job, path)
    if job.output.write == "columns":
        _check_columns(job, path)


def _check_input(given: InputConfig, path: str) -> None:
    arrivals = given.trigger == "available_now" or given.changes
    if given.table and (given.format != "parquet" or (given.options and not arrivals)):
        raise ConfigError(f"{path}: input.format and input.options are for path, not for table.")
    if {key.lower() for key in given.options} & {"readchangefeed", "readchangedata"}:
        raise ConfigError(
            f"{path}: [input.options] asks for a change data feed; set input.changes = true, or "
            "what a row was before a change would be embedded as well."
        )
    if given.trigger == "available_now" and not given.checkpoint:
        raise ConfigError(
            f'{path}: input.trigger = "available_now" needs input.checkpoint: a directory of its '
            "own, in which Spark notes what it has read."
        )


def _check_arrivals(job: JobConfig, path: str) -> None:
    """An input of which a run sees only what has come: since the last one, or since a version."""
    given = job.input
    if given.changes:
        _check_changes(given, path)
    elif job.run.delete_missing:
        raise ConfigError(
            f'{path}: input.trigger = "available_now" reads what has come, which does not say what '
            "has left; so it cannot go with run.delete_missing. Set input.changes = true, if the "
            "input is a Delta table with a change data feed, or read it as a batch."
        )
    if not (given.id or given.hash_id):
        raise ConfigError(
            f'{path}: input.trigger = "available_now" needs input.id (or input.hash_id = true): '
            "what was read and not committed is read again, and must be known by its ids."
        )


def _check_changes(given: InputConfig, path: str) -> None:
    options = {key.lower() for key in given.options}
    if given.path and given.format != "delta":
        raise ConfigError(
            f"{path}: input.changes reads the change data feed of a Delta table; give "
            'input.format = "delta".'
        )
    if not given.id:
        raise ConfigError(
            f"{path}: input.changes needs input.id, a column that a row keeps when it changes; "
            "input.hash_id is made of its texts."
        )
    if given.trigger == "batch" and not options & {"startingversion", "startingtimestamp"}:
        raise ConfigError(
            f"{path}: input.changes needs startingVersion or startingTimestamp in "
            '[input.options]; or input.trigger = "available_now", which notes how far it came.'
        )
    if options & {"maxfilespertrigger", "maxbytespertrigger"}:
        raise ConfigError(
            f"{path}: maxFilesPerTrigger and maxBytesPerTrigger may cut a commit in two, and then "
            "input.changes would remove rows that were written anew; leave them out."
        )


def _check_columns(job: JobConfig, path: str) -> None:
    """The output is the input, of which rows must be found again and none may come or go."""
    given, output = job.input, job.output
    if (given.path, given.table) != (output.path, output.table):
        raise ConfigError(
            f'{path}: output.write = "columns" adds columns to the input table; give the same path '
            "or table in [input] and [output]."
        )
    if output.format != "delta" or (given.path and given.format != "delta"):
        raise ConfigError(f'{path}: output.write = "columns" is for tables of format "delta".')
    if not given.id:
        raise ConfigError(f'{path}: output.write = "columns" needs input.id, to find rows again.')
    refused = {
        "input.keep": given.keep,
        "input.hash_id": given.hash_id,
        "input.options": given.options,
        "input.trigger": given.trigger != "batch",
        "input.changes": given.changes,
        "output.options": output.options,
        "run.delete_missing": job.run.delete_missing,
        "model.long_text = split": job.model.options.get("long_text") == "split",
    }
    for name, value in refused.items():
        if value:
            raise ConfigError(
                f'{path}: {name} is for output.write = "rows"; with "columns" the table keeps its '
                "rows and its other columns."
            )


def _check_run(job: JobConfig, path: str) -> None:
    run = job.run
    if not 0 <= run.max_error_rate <= 1:
        raise ConfigError(f"{path}: run.max_error_rate is a share from 0 to 1.")
    for name, least in (("partitions", 0), ("chunk_rows", 0), ("in_flight", 1)):
        if getattr(run, name) < least:
            raise ConfigError(
                f"{path}: run.{name} is {getattr(run, name)}; it must be {least} or more."
            )


def _checked(value: object, hint: Any, where: str) -> Any:  # noqa: ANN401  # any annotation
    """Returns the value if it is of the annotated type; lists become tuples."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        kinds = [kind for kind in arguments if kind is not NoneType]
        # a string or a list of strings; else one kind, or left out
        return _checked(value, kinds[-1 if isinstance(value, list) else 0], where)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{where} is {value!r}; it must be one of {', '.join(arguments)}.")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where} is {value!r}; it must be a list.")
        return tuple(_checked(each, arguments[0], where) for each in value)
    if origin is not None:  # a table of strings: options are passed on as Spark takes them
        if not isinstance(value, dict):
            raise ConfigError(f"{where} is {value!r}; it must be a table, [{where.split()[-1]}].")
        return {key: _conf_text(each) for key, each in _flat(value).items()}
    return _scalar(value, hint, where)


def _scalar(value: object, kind: type, where: str) -> object:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        names = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
        raise ConfigError(f"{where} is {value!r}; it must be {names[kind]}.")
    return value


def _override(data: dict[str, Any], override: str) -> None:
    name, separator, text = override.partition("=")
    section, _, key = name.strip().partition(".")
    if not separator or not key:
        raise ConfigError(f"--set {override}: give it as section.key=value.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    target = data.setdefault(section, {})
    # Spark's own names have dots: spark.spark.sql.x and input.options.a.b name one key each.
    if section != "spark" and "." in key and isinstance(target, dict):
        table, _, key = key.partition(".")
        target = target.setdefault(table, {})
    if not isinstance(target, dict):
        raise ConfigError(f"--set {override}: {section} is no table.")
    target[key] = value


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested tables as dotted keys: an unquoted ``spark.sql.x`` in TOML is a table."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _conf_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else f" It may be {', '.join(known)}."
