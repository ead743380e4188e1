"""The report of a run, out of the state directory of its table and into a directory."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from e5spark import page
from e5spark.errors import ConfigError, ConflictError, InputError
from e5spark.job.config import JobConfig
from e5spark.job.run import open_output
from e5spark.job.run_page import dumped
from e5spark.names import redacted
from e5spark.page.build import FORMAT
from e5spark.tables.ledger import reports
from e5spark.tables.storage.open import open_storage


def stored(
    spark: SparkSession, config: JobConfig, *, epoch: int | None = None
) -> tuple[int, dict[str, Any]]:
    """Returns the number of a run of a job, and the document of its report.

    Args:
        spark: The session.
        config: The job.
        epoch: The run; None is the last one that left a report.

    Raises:
        InputError: If there is no such report.
        ConflictError: If it is damaged, or a later release of e5spark wrote it.
    """
    target, _ = open_output(spark, config)
    storage = open_storage(spark, target.location) if target.location else None
    epochs = reports.epochs(storage) if storage else []
    number = epochs[-1] if epoch is None and epochs else epoch
    data = reports.read(storage, number) if storage and number is not None else None
    if number is None or data is None:
        has = (
            f"It has those of the runs {', '.join(map(str, epochs))}."
            if epochs
            else ("It has none; a run of e5spark embed leaves one.")
        )
        which = "a report" if epoch is None else f"a report of run {epoch}"
        raise InputError(f"{redacted(target.name)} does not have {which}. {has}")
    return number, read(data, f"the report of run {number} of {redacted(target.name)}")


def save(document: Mapping[str, Any], directory: Path) -> list[Path]:
    """Writes report.json and report.html, and returns their paths.

    Raises:
        ConflictError: If the document is damaged.
        ConfigError: If the directory cannot be written.
    """
    try:
        files = {
            reports.DOCUMENT: dumped(document),
            reports.PAGE: page.html(document).encode("utf-8", "replace"),
        }
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise _damaged("The report", type(error).__name__) from error
    paths = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            paths.append(directory / name)
            paths[-1].write_bytes(content)
    except OSError as error:
        raise ConfigError(f"{directory} cannot be written: {error.strerror}.") from error
    return paths


def read(data: bytes, name: str) -> dict[str, Any]:
    """Returns the document of a report.

    Args:
        data: The content of report.json.
        name: What the messages call it.

    Raises:
        ConflictError: If it is damaged, or a later release of e5spark wrote it.
    """
    try:
        document = json.loads(data)
        version = document["format"]
        if not isinstance(version, int):
            raise TypeError("its format is no number")
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise _damaged(name, type(error).__name__) from error
    if version > FORMAT:
        raise ConflictError(
            f"{name} has format {version}; this e5spark reads formats up to {FORMAT}. Use the "
            "release that wrote it, or a later one."
        )
    return dict(document)


def _damaged(name: str, cause: str) -> ConflictError:
    return ConflictError(
        f"{name[0].upper()}{name[1:]} is damaged ({cause}). Name another run with --run; the rows "
        "of the table do not depend on it."
    )
