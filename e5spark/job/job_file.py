"""Reads a job file, strictly: a typo stops the job instead of changing the table."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Any, cast, get_type_hints

from e5spark.errors import ConfigError, ConflictError
from e5spark.job import sections
from e5spark.job.config import (
    EmbedConfig,
    InputConfig,
    JobConfig,
    ModelConfig,
    OutputConfig,
    QualityConfig,
    ReportConfig,
    RunConfig,
    check,
)
from e5spark.job.sections import nearest, overridden, read_toml, section, settings
from e5spark.model.spec import ModelOptions


def load(path: Path, overrides: Sequence[str] = ()) -> JobConfig:
    """Returns the job of a file, with ``section.key=value`` overrides applied.

    Args:
        path: A TOML file.
        overrides: Their values are TOML (``true``, ``3``, ``["a"]``); anything else is a string.

    Raises:
        ConfigError: If the file cannot be read, a key is unknown, a value has the wrong type, or
            keys contradict each other; the message begins with the file or the override at fault.
    """
    return overridden(read_toml(path, "job file"), str(path), overrides, _checked_job)


def load_model(name: str, overrides: Sequence[str] = ()) -> ModelConfig:
    """Returns a ``[model]`` section: a name, and ``model.key=value`` overrides.

    Raises:
        ConfigError: If a key is unknown or of another section, or a value has the wrong type.
    """
    return overridden({"model": {"name": name}}, "the model", overrides, _model_alone)


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


def _checked_job(data: dict[str, Any]) -> JobConfig:
    job = _job(data)
    check(job)
    return job


def _model_alone(data: dict[str, Any]) -> ModelConfig:
    if len(data) > 1:
        raise ConfigError("only keys of model can be set here.")
    return model_section(data)


def _job(data: dict[str, Any]) -> JobConfig:
    names = [field.name for field in fields(JobConfig)]
    for name, values in data.items():
        if name not in names:
            raise ConfigError(f"unknown section [{name}].{nearest(name, names)}")
        if not isinstance(values, dict):
            raise ConfigError(f"{name} is a value; it must be a section, [{name}].")
    return JobConfig(
        input=section(data, "input", InputConfig),
        embed=section(data, "embed", EmbedConfig),
        model=model_section(data),
        output=section(data, "output", OutputConfig),
        run=section(data, "run", RunConfig),
        quality=section(data, "quality", QualityConfig),
        report=section(data, "report", ReportConfig),
        spark=settings(data.get("spark", {})),
    )


def model_section(data: Mapping[str, Any]) -> ModelConfig:
    """Returns the section ``[model]``.

    Raises:
        ConfigError: If a key is unknown, a value has the wrong type, or it has no name.
    """
    values = sections.values(data, "model", {"name": str, **get_type_hints(ModelOptions)})
    # The example shows unset keys as "", which must mean the same once they are uncommented.
    values = {key: value for key, value in values.items() if value != ""}
    if "name" not in values:
        raise ConfigError("[model] has no name; give a checkpoint or a directory.")
    return ModelConfig(name=values.pop("name"), options=cast(ModelOptions, values))
