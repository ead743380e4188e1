"""The sections of a TOML file, checked against dataclasses: a typo is refused, never ignored."""

import copy
import difflib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from e5spark.errors import ConfigError

_Section = TypeVar("_Section")
_Built = TypeVar("_Built")
# Keys of a table's or a directory's path, which may begin with ~.
_PATHS = ("path", "checkpoint_location", "data", "qrels")
_NESTED = "is nested too deeply; a value has two levels of tables or lists at most."


def read_toml(path: Path, kind: str) -> dict[str, Any]:
    """Returns the content of a TOML file.

    Args:
        path: The file.
        kind: What it is, for the message: ``job file``.

    Raises:
        ConfigError: If it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"The {kind} {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:  # of TOML, of UTF-8, or of a number with thousands of digits
        raise ConfigError(f"{path} is not valid TOML: {error}.") from error
    except RecursionError as error:
        raise ConfigError(f"{path} {_NESTED}") from error


def overridden(
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
    try:
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
    except RecursionError as error:
        raise ConfigError(f"{source} {_NESTED}") from error


def _refusal(build: Callable[[dict[str, Any]], object], data: dict[str, Any]) -> str | None:
    try:
        build(data)
    except ConfigError as error:
        return str(error)
    return None


def section(data: Mapping[str, Any], name: str, kind: type[_Section]) -> _Section:
    """Returns a section as its dataclass.

    Raises:
        ConfigError: If a key is unknown or missing, or a value has the wrong type.
    """
    required = [
        field.name
        for field in fields(kind)  # type: ignore[arg-type]  # a dataclass
        if field.default is MISSING and field.default_factory is MISSING
    ]
    return kind(**values(data, name, get_type_hints(kind), required))


def values(
    data: Mapping[str, Any], section: str, hints: Mapping[str, Any], required: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns the values of a section, by key; lists as tuples.

    Args:
        data: The whole file.
        section: The name of the section.
        hints: The type of each key.
        required: Keys that must be there.

    Raises:
        ConfigError: If a key is unknown or missing, or a value has the wrong type.
    """
    stored = data.get(section, {})
    for key in stored:
        if key not in hints:
            raise ConfigError(f"unknown key {key!r} in [{section}].{nearest(key, list(hints))}")
    for key in required:
        if key not in stored:
            raise ConfigError(f"[{section}] needs the key {key!r}.")
    return {key: _checked(value, hints[key], f"{section}.{key}") for key, value in stored.items()}


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
        return settings(value)
    return _scalar(value, hint, key)


def _scalar(value: object, kind: type, key: str) -> object:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        names = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
        raise ConfigError(f"{key} is {value!r}; it must be {names[kind]}.")
    if key.rpartition(".")[2] in _PATHS and isinstance(value, str) and value.startswith("~"):
        return _expanded(value, key)
    return value


def _expanded(path: str, key: str) -> str:
    try:
        return str(Path(path).expanduser())
    except RuntimeError as error:
        raise ConfigError(f"{key} is {path!r}; there is no such home directory.") from error


def settings(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Returns a table as options of Spark: in TOML an unquoted ``spark.sql.x`` is a table."""
    options: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            options |= settings(value, f"{prefix}{key}.")
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
    except (ValueError, RecursionError):
        value = text
    target = data.setdefault(section, {})
    # Spark's own names have dots: spark.spark.sql.x and input.options.a.b name one key each.
    if section != "spark" and "." in key and isinstance(target, dict):
        table, _, key = key.partition(".")
        target = target.setdefault(table, {})
    if not isinstance(target, dict):
        raise ConfigError(f"--set {name.strip()}: {section} is not a table.")
    target[key] = value


def nearest(name: str, names: Sequence[str]) -> str:
    """Returns the end of a message about an unknown name: the nearest one, or all names."""
    matches = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else f" Use one of {', '.join(names)}."
