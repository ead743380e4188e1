"""A job file to its config: strictly, so that a typo stops the job and not the table."""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from e5spark.config import (
    EmbedConfig,
    InputConfig,
    JobConfig,
    ModelConfig,
    OutputConfig,
    RunConfig,
    check,
)
from e5spark.errors import ConfigError
from e5spark.spec import ModelOptions

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
    check(job, path)
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
