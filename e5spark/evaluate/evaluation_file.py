"""Reads an evaluation file, as strictly as a job file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_type_hints

from e5spark.errors import ConfigError
from e5spark.evaluate.config import (
    KINDS,
    CompareConfig,
    EvaluationConfig,
    OutputConfig,
    RetrievalConfig,
    Settings,
    TableConfig,
    TaskConfig,
)
from e5spark.job import job_file
from e5spark.job.job_file import model_section
from e5spark.job.sections import nearest, overridden, read_toml, section, settings, values
from e5spark.model.spec import ModelOptions

_SECTIONS = ("model", "output", "tasks", "compare", "spark")


def load(path: Path, overrides: Sequence[str] = ()) -> EvaluationConfig:
    """Returns the evaluation of a file, with ``section.key=value`` overrides applied.

    Raises:
        ConfigError: If the file cannot be read, a key is unknown, a value has the wrong type, or
            keys contradict each other; the message begins with the file or the override at fault.
    """
    return overridden(read_toml(path, "evaluation file"), str(path), overrides, _evaluation)


def _evaluation(data: dict[str, Any]) -> EvaluationConfig:
    for name, content in data.items():
        if name not in _SECTIONS:
            raise ConfigError(f"unknown section [{name}].{nearest(name, _SECTIONS)}")
        if not isinstance(content, dict):
            raise ConfigError(f"{name} is a value; it must be a section, [{name}].")
    tasks = data.get("tasks", {})
    if not tasks:
        raise ConfigError("there is no task; add a section [tasks.NAME] with its kind.")
    return EvaluationConfig(
        tasks=tuple(_task(key, task) for key, task in tasks.items()),
        model=model_section(data) if "model" in data else None,
        output=section(data, "output", OutputConfig),
        compare=_compare(data),
        spark=settings(data.get("spark", {})),
    )


def _compare(data: Mapping[str, Any]) -> CompareConfig:
    compare = section(data, "compare", CompareConfig)
    for key in ("precisions", "output_types"):
        if not getattr(compare, key):
            raise ConfigError(f"compare.{key} is empty; list one or more.")
    if ("int8" in compare.precisions) != bool(compare.int8):
        raise ConfigError(
            'compare.precisions has "int8" if, and only if, compare.int8 names the directory that '
            "e5spark prepare --precision int8 has made; give both."
        )
    if any(dim < 1 for dim in compare.dims):
        raise ConfigError("compare.dims has a number below 1; a dim is a positive whole number.")
    return compare


def _task(key: str, task: object) -> TaskConfig:
    name = f"tasks.{key}"
    if not isinstance(task, dict):
        raise ConfigError(f"{name} is a value; it must be a section, [{name}].")
    if task.get("kind") not in KINDS:
        raise ConfigError(
            f"{name}.kind is {task.get('kind')!r}; it must be one of {', '.join(KINDS)}."
        )
    kind = KINDS[task["kind"]]
    hints = {
        "kind": str,
        **get_type_hints(kind.settings),
        # read by themselves below; here they make the list of known keys complete
        **dict.fromkeys((*kind.keys, "model"), object),
    }
    options = values({name: task}, name, hints)
    tables = {
        side: _table(f"{name}.{side}", options.pop(side)) for side in kind.keys if side in options
    }
    model = values(
        {f"{name}.model": options.pop("model", {})}, f"{name}.model", get_type_hints(ModelOptions)
    )
    del options["kind"]
    result = TaskConfig(
        key=key,
        kind=task["kind"],
        settings=kind.settings(**options),
        tables=tables,
        model=cast(ModelOptions, model),
    )
    _check(name, result)
    return result


def _table(name: str, table: object) -> TableConfig:
    if isinstance(table, str):
        table = {"path": table}
    if not isinstance(table, dict):
        raise ConfigError(f"{name} is {table!r}; it must be a path, or a table, [{name}].")
    config = section({name: table}, name, TableConfig)
    if sum(map(bool, (config.job, config.path, config.table))) != 1:
        raise ConfigError(f"[{name}] needs path, table or job, and only one of them.")
    if config.job and (config.format or config.options):
        raise ConfigError(f"[{name}] has the format and options of its job; leave them out.")
    return config


def _check(name: str, task: TaskConfig) -> None:
    needed = [side for side in KINDS[task.kind].keys if side not in task.tables]
    if isinstance(task.settings, RetrievalConfig):
        _check_retrieval(name, task.settings, needed)
    elif needed:
        raise ConfigError(f"[{name}] needs {' and '.join(needed)}: a path, or a table.")
    if KINDS[task.kind].is_paired:
        for side, table in task.tables.items():
            if len(table.texts) not in (0, 2) or len(table.vectors) not in (0, 2):
                raise ConfigError(
                    f"[{name}.{side}] has pairs; text and vector name two columns each."
                )
    _check_numbers(name, task.settings)


def _check_retrieval(name: str, task: RetrievalConfig, needed: list[str]) -> None:
    if needed and not task.data:
        raise ConfigError(
            f"[{name}] needs {' and '.join(needed)}; or data, a directory of BEIR's or MIRACL's "
            "layout."
        )


def _check_numbers(name: str, task: Settings) -> None:
    for key in ("depth", "samples_per_label", "experiments"):
        if getattr(task, key, 1) < 1:
            raise ConfigError(f"{name}.{key} is {getattr(task, key)}; it must be 1 or more.")


def formats(config: EvaluationConfig) -> set[str]:
    """Returns the formats of an evaluation's tables, for the session."""
    named = [table for task in config.tasks for table in task.tables.values()]
    written = [job_file.load(Path(table.job)).output.format for table in named if table.job]
    return {*(table.format for table in named), *written}
