"""Reads a job file, strictly: a typo stops the job instead of changing the table."""

import copy
import difflib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from importlib.resources import files
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from e5spark.errors import ConfigError, ConflictError
from e5spark.job.config import (
    EmbedConfig,
    InputConfig,
    JobConfig,
    ModelConfig,
    OutputConfig,
    QualityConfig,
    RunConfig,
    check,
)
from e5spark.model.spec import ModelOptions

_Section = TypeVar("_Section", InputConfig, EmbedConfig, OutputConfig, RunConfig, QualityConfig)
_Built = TypeVar("_Built", JobConfig, ModelConfig)
# Paths of a table or a directory, which may begin with ~.
_PATHS = ("input.path", "input.checkpoint_location", "output.path")


def load(path: Path, overrides: Sequence[str] = ()) -> JobConfig:
    """Returns the job of a file, with ``section.key=value`` overrides applied.

    Args:
        path: A TOML file.
        overrides: Their values are TOML (``true``, ``3``, ``["a"]``); anything else is a string.

    Raises:
        ConfigError: If the file cannot be read, a key is unknown, a value has the wrong type, or
            keys contradict each other; the message begins with the file or the override at fault.
    """
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"The job file {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from error
    return _overridden(data, str(path), overrides, _checked_job)


def load_model(name: str, overrides: Sequence[str] = ()) -> ModelConfig:
    """Returns a ``[model]`` section: a name, and ``model.key=value`` overrides.

    Raises:
        ConfigError: If a key is unknown or of another section, or a value has the wrong type.
    """
    return _overridden({"model": {"name": name}}, "the model", overrides, _model_alone)


def write_example(directory: Path) -> Path:
    """Writes the commented job file, ``embed.toml``, to a directory and returns its path.

    Raises:
        ConflictError: If the file exists.
        ConfigError: If it cannot be written.
    """
    path = directory / "embed.toml"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(files("e5spark.job").joinpath("embed.toml").read_bytes())
    except FileExistsError as error:
        if not directory.is_dir():
            raise ConfigError(f"{directory} is not a directory; give a directory.") from error
        raise ConflictError(
            f"{path} already exists and was not overwritten; give another directory."
        ) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}.") from error
    return path


def _overridden(
    data: dict[str, Any],
    source: str,
    overrides: Sequence[str],
    build: Callable[[dict[str, Any]], _Built],
) -> _Built:
    """Returns what ``build`` makes of the overridden data.

    Raises:
        ConfigError: If ``build`` does; the message names the file or the override at fault.
    """
    versions = [(source, data)]
    for override in overrides:
        data = copy.deepcopy(data)
        _override(data, override)
        versions.append((f"--set {override.partition('=')[0].strip()}", data))
    try:
        return build(data)
    except ConfigError as error:
        message = str(error)
        at_fault = next(name for name, data in versions if _refusal(build, data) == message)
        raise ConfigError(f"{at_fault}: {message}") from error


def _refusal(build: Callable[[dict[str, Any]], object], data: dict[str, Any]) -> str | None:
    try:
        build(data)
    except ConfigError as error:
        return str(error)
    return None


def _checked_job(data: dict[str, Any]) -> JobConfig:
    job = _job(data)
    check(job)
    return job


def _model_alone(data: dict[str, Any]) -> ModelConfig:
    if len(data) > 1:
        raise ConfigError("only keys of model can be set here.")
    return _model(data)


def _job(data: dict[str, Any]) -> JobConfig:
    sections = [field.name for field in fields(JobConfig)]
    for name, values in data.items():
        if name not in sections:
            raise ConfigError(f"unknown section [{name}].{_nearest(name, sections)}")
        if not isinstance(values, dict):
            raise ConfigError(f"{name} is a value; it must be a section, [{name}].")
    return JobConfig(
        input=_section(data, "input", InputConfig),
        embed=_section(data, "embed", EmbedConfig),
        model=_model(data),
        output=_section(data, "output", OutputConfig),
        run=_section(data, "run", RunConfig),
        quality=_section(data, "quality", QualityConfig),
        spark=_strings(data.get("spark", {})),
    )


def _section(data: dict[str, Any], name: str, kind: type[_Section]) -> _Section:
    required = [
        field.name
        for field in fields(kind)
        if field.default is MISSING and field.default_factory is MISSING
    ]
    return kind(**_values(data, name, get_type_hints(kind), required))


def _model(data: dict[str, Any]) -> ModelConfig:
    values = _values(data, "model", {"name": str, **get_type_hints(ModelOptions)})
    # The example shows unset keys as "", which must mean the same once they are uncommented.
    values = {key: value for key, value in values.items() if value != ""}
    if "name" not in values:
        raise ConfigError("[model] has no name; give a checkpoint or a directory.")
    return ModelConfig(name=values.pop("name"), options=cast(ModelOptions, values))


def _values(
    data: dict[str, Any], section: str, hints: Mapping[str, Any], required: Sequence[str] = ()
) -> dict[str, Any]:
    values = data.get(section, {})
    for key in values:
        if key not in hints:
            raise ConfigError(f"unknown key {key!r} in [{section}].{_nearest(key, list(hints))}")
    for key in required:
        if key not in values:
            raise ConfigError(f"[{section}] needs the key {key!r}.")
    return {key: _checked(value, hints[key], f"{section}.{key}") for key, value in values.items()}


def _checked(value: object, hint: Any, key: str) -> Any:  # noqa: ANN401  # any annotation
    """Returns the value of a key if it has the annotated type; lists become tuples."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        kinds = [kind for kind in arguments if kind is not NoneType]
        # a string or a list of strings; otherwise one kind, or None
        return _checked(value, kinds[-1 if isinstance(value, list) else 0], key)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{key} is {value!r}; it must be one of {', '.join(arguments)}.")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{key} is {value!r}; it must be a list.")
        return tuple(_checked(item, arguments[0], key) for item in value)
    if origin is not None:
        if not isinstance(value, dict):
            raise ConfigError(f"{key} is {value!r}; it must be a table, [{key}].")
        return _strings(value)
    return _scalar(value, hint, key)


def _scalar(value: object, kind: type, key: str) -> object:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        names = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
        raise ConfigError(f"{key} is {value!r}; it must be {names[kind]}.")
    if key in _PATHS and isinstance(value, str) and value.startswith("~"):
        return _expanded(value, key)
    return value


def _expanded(path: str, key: str) -> str:
    try:
        return str(Path(path).expanduser())
    except RuntimeError as error:
        raise ConfigError(f"{key} is {path!r}; there is no such home directory.") from error


def _strings(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Returns a table as options of Spark: in TOML an unquoted ``spark.sql.x`` is a table."""
    options: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            options |= _strings(value, f"{prefix}{key}.")
        else:
            options[prefix + key] = str(value).lower() if isinstance(value, bool) else str(value)
    return options


def _override(data: dict[str, Any], override: str) -> None:
    name, separator, text = override.partition("=")
    section, _, key = name.strip().partition(".")
    if not separator or not key:
        raise ConfigError(
            f"--set {name.strip()}: an override has a section, a key and a value; give it as "
            "section.key=value."
        )
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
        raise ConfigError(f"--set {name.strip()}: {section} is not a table.")
    target[key] = value


def _nearest(name: str, names: list[str]) -> str:
    matches = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else f" Use one of {', '.join(names)}."
