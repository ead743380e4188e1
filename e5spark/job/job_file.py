"""A job file to its config: strictly, so that a typo stops the job and not the table."""

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from e5spark.errors import ConfigError
from e5spark.job.config import (
    EmbedConfig,
    InputConfig,
    JobConfig,
    ModelConfig,
    OutputConfig,
    RunConfig,
    check,
)
from e5spark.model.spec import ModelOptions

_Section = TypeVar("_Section", InputConfig, EmbedConfig, OutputConfig, RunConfig)


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
    with _refused_as(str(path)):
        job = _job(data)
        check(job)
    return job


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
    with _refused_as("--set"):
        return _model(data)


@contextmanager
def _refused_as(source: str) -> Iterator[None]:
    """Begins the message of a refusal with what is refused."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def _job(data: dict[str, Any]) -> JobConfig:
    known = [each.name for each in fields(JobConfig)]
    for name, values in data.items():
        if name not in known:
            raise ConfigError(f"unknown section [{name}].{_nearest(name, known)}")
        if not isinstance(values, dict):
            raise ConfigError(f"{name} is a value; it must be a section, [{name}].")
    return JobConfig(
        input=_section(data, "input", InputConfig),
        embed=_section(data, "embed", EmbedConfig),
        model=_model(data),
        output=_section(data, "output", OutputConfig),
        run=_section(data, "run", RunConfig),
        spark=_strings(data.get("spark", {})),
    )


def _section(data: dict[str, Any], name: str, kind: type[_Section]) -> _Section:
    needed = [
        each.name
        for each in fields(kind)
        if each.default is MISSING and each.default_factory is MISSING
    ]
    return kind(**_values(data, name, get_type_hints(kind), needed))


def _model(data: dict[str, Any]) -> ModelConfig:
    values = _values(data, "model", {"name": str, **get_type_hints(ModelOptions)})
    # conf/embed.toml shows as "" what is not given: written out, it must mean the same.
    values = {key: value for key, value in values.items() if value != ""}
    if "name" not in values:
        raise ConfigError("[model] has no name; give a checkpoint or a directory.")
    return ModelConfig(name=values.pop("name"), options=cast(ModelOptions, values))


def _values(
    data: dict[str, Any], section: str, hints: Mapping[str, Any], needed: Sequence[str] = ()
) -> dict[str, Any]:
    values = data.get(section, {})
    for key in values:
        if key not in hints:
            raise ConfigError(f"unknown key {key!r} in [{section}].{_nearest(key, list(hints))}")
    for key in needed:
        if key not in values:
            raise ConfigError(f"[{section}] needs the key {key!r}.")
    return {key: _checked(value, hints[key], f"{section}.{key}") for key, value in values.items()}


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
    if origin is not None:
        if not isinstance(value, dict):
            raise ConfigError(f"{where} is {value!r}; it must be a table, [{where}].")
        return _strings(value)
    return _scalar(value, hint, where)


def _scalar(value: object, kind: type, where: str) -> object:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        names = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
        raise ConfigError(f"{where} is {value!r}; it must be {names[kind]}.")
    return value


def _strings(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Returns a table as Spark takes options: an unquoted ``spark.sql.x`` in TOML is a table."""
    found: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found |= _strings(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = str(value).lower() if isinstance(value, bool) else str(value)
    return found


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


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else f" It may be {', '.join(known)}."
