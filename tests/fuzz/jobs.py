"""Job files: a mutated one is refused, or the job has exactly the values that the file has."""

import json
import shutil
import tomllib
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

from e5spark.job import job_file
from e5spark.job import source as sources
from e5spark.job.config import JobConfig
from e5spark.job.sections import settings
from e5spark.model.spec import model_spec
from e5spark.names import redacted
from e5spark.tables.sinks.files import check_options
from e5spark.tables.sinks.paths import check_apart, check_path
from tests.fuzz.mutate import TEXTS, mutate_bytes, mutate_value, nasty

WHOLE: dict[str, Any] = {
    "input": {"path": "/data/docs", "format": "csv", "id": "id", "where": "id > 1",
              "columns": ["a"], "select": ["*", "a + 1 AS b"], "on_duplicate": "first",
              "options": {"header": "true"}},
    "embed": {"text": ["title", "body"], "join": "\n", "role": "passage", "column_prefix": "v_"},
    "model": {"name": "intfloat/multilingual-e5-small", "precision": "fp32", "max_tokens": 256,
              "dim": 384, "long_text": "truncate", "overlap": 64, "download": False,
              "prompts": {"query": "query: ", "passage": "passage: "}, "device": "auto"},
    "output": {"path": "/data/out", "format": "parquet", "options": {"compression": "zstd"}},
    "run": {"partitions": 8, "chunk_rows": 1000, "max_error_rate": 0.5, "delete_missing": True},
    "quality": {"canaries": False, "min_pair_cosine": 0.1, "max_pair_cosine": 0.9},
    "spark": {"spark.sql.shuffle.partitions": 8, "spark": {"sql": {"ansi": {"enabled": True}}}},
}  # fmt: skip
STREAM: dict[str, Any] = {
    "input": {"table": "db.docs", "id": "id", "trigger": "available_now", "change_feed": True,
              "checkpoint_location": "/data/checkpoint", "options": {"startingVersion": "1"}},
    "embed": {"text": "body", "role_column": "role", "instruction_column": "task"},
    "model": {"name": "/models/e5", "checkpoint": "intfloat/e5-small-v2", "output_type": "int8",
              "calibration": "/data/ranges.json"},
    "output": {"table": "db.`my docs`", "format": "delta"},
}  # fmt: skip
COLUMNS: dict[str, Any] = {
    "input": {"path": "/data/docs", "format": "delta", "id": "id"},
    "embed": {"text": "body", "role": "query", "instruction": "Find it"},
    "model": {"name": "intfloat/multilingual-e5-large-instruct"},
    "output": {"path": "/data/docs", "format": "delta", "write": "columns"},
}


def corpus(directory: Path) -> list[str]:
    """Job files that are right."""
    example = Path(job_file.__file__).with_name("embed.toml").read_text("utf-8")
    return [example, *map(toml, (WHOLE, STREAM, COLUMNS))]


def case(corpus: list[str], directory: Path, rng: Random, notes: list[str]) -> str:
    """Loads a mutated file, with mutated overrides, and checks all that needs no JVM."""
    text = rng.choice(corpus)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        text = _mutated(text, rng)
    path = directory / "job.toml"
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.3:
        data = mutate_bytes(data, rng)
    path.write_bytes(data)
    overrides = [_override(rng) for _ in range(rng.choice((0, 0, 1, 2)))]
    notes.append(f"{overrides}")
    notes.append(repr(data[:6000]))
    job = job_file.load(path, overrides)
    if not overrides:
        _check_same(tomllib.loads(data.decode()), job)
    # What a run checks before it needs Spark, and what it prints.
    model_spec(job.model.name, job.model.options)
    check_path(job.output.path)
    check_options(job.output.options)
    if job.input.path and job.output.path:
        check_apart(job.input.path, job.output.path)
    sources.vector_names(job.embed)
    assert redacted(redacted(repr(job))) == redacted(repr(job))
    return "accepted"


def cleanup(directory: Path) -> None:
    shutil.rmtree(directory)


def _mutated(text: str, rng: Random) -> str:
    action = rng.randrange(60)
    if action == 0:
        return f"{text}\n[run]\n{'.'.join('a' * rng.choice((3, 300, 3000)))} = 1\n"
    action %= 6
    if action <= 2:
        try:
            return toml(mutate_value(tomllib.loads(text), rng))
        except (ValueError, RecursionError):
            pass
    lines = text.splitlines(keepends=True)
    if not lines:
        return rng.choice(TEXTS)
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    if action == 3:
        lines[at], lines[other] = lines[other], lines[at]
    elif action == 4:
        lines.insert(at, lines[other])
    else:  # the example's keys are comments
        lines[at] = lines[at].removeprefix("# ")
    return "".join(lines)


def _override(rng: Random) -> str:
    section = rng.choice(("input", "embed", "model", "output", "run", "quality", "spark", "", "x"))
    key = rng.choice(("path", "text", "name", "format", "id", "options.a", "partitions", "a.b.c",
                      "max_tokens", "prompts", "prompts.query", "write", "", "dim"))  # fmt: skip
    value = rng.choice((_toml(nasty(rng)), rng.choice(TEXTS), "[" * 5000, "1\nb = 2", "9" * 5000))
    return rng.choice((f"{section}.{key}={value}", f"{section}={value}", value, f"{section}.{key}"))


def _check_same(data: dict[str, Any], job: JobConfig) -> None:
    """Raises unless every key of the file is in the job with its value."""
    found = {**asdict(job), "model": {"name": job.model.name, **job.model.options}}
    found["spark"] = dict(job.spark)
    for section, values in data.items():
        if section == "spark":
            assert settings(values) == found["spark"]
            continue
        for key, value in values.items():
            if section == "model" and value == "":
                continue
            if isinstance(value, dict):
                value = settings(value)
            actual = found[section][key]
            if isinstance(value, str) and value.startswith("~") and value != actual:
                continue  # a home directory
            plain = list(actual) if isinstance(actual, tuple) else actual
            assert plain == value or (plain != plain and value != value), (
                section,
                key,
                value,
                plain,
            )


def toml(data: Any) -> str:
    """The data as TOML, in sections; what TOML cannot say, as JSON says it."""
    if not isinstance(data, dict):
        return f"{_toml(data)}\n"
    lines = []
    for section, values in data.items():
        if not isinstance(values, dict):
            lines.insert(0, f"{_key(section)} = {_toml(values)}")
            continue
        lines.append(f"[{_key(section)}]")
        lines += [f"{_key(key)} = {_toml(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def _key(key: str) -> str:
    return json.dumps(key)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_toml(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value)
