"""The records of a ledger: of commits, of runs, and the figures of the last run."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from e5spark.tables.ledger.documents import FORMAT, read_document
from e5spark.tables.ledger.layout import FIGURES
from e5spark.tables.storage.protocol import Storage

Kind = Literal["append", "deferred", "replace"]
Outcome = Literal["done", "failed"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One commit.

    Attributes:
        name: The epoch of its run and a number within the run; names sort by age.
        kind: ``append``: rows of new ids, visible at once. ``deferred``: rows that wait for the
            ``replace`` that includes them. ``replace``: makes deferred rows visible and removes
            other rows, in one step.
        files: Its staged Parquet files, relative to the table's directory.
        rows: How many rows the files have.
        counts: How many of its texts have each status.
        removes: Files of the table that are removed; Parquet only.
        includes: The names of the deferred records that become visible with it.
        schema: The schema of the table from this commit on, as Spark's JSON; None if it stays.
        format: The format of the state file.
    """

    name: str
    kind: Kind
    files: tuple[str, ...] = ()
    rows: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    removes: tuple[str, ...] = ()
    includes: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = None
    format: int = FORMAT

    def __post_init__(self) -> None:
        """Raises ValueError unless the name is two numbers."""
        if not re.fullmatch(r"\d+-\d+", self.name):
            raise ValueError(f"{self.name!r} is not the name of a record")


@dataclass(frozen=True, kw_only=True)
class RunFigures:
    """Figures of the vectors that a run wrote.

    Attributes:
        epoch: The number of the run.
        figures: The figures by name.
        format: The format of the state file.
    """

    epoch: int
    figures: Mapping[str, Any]
    format: int = FORMAT


def read_figures(storage: Storage) -> RunFigures | None:
    """Returns the figures that a run has kept; None if none has.

    Raises:
        ConflictError: If the file is damaged, or a later release of e5spark wrote it.
    """
    return read_document(
        storage,
        FIGURES,
        RunFigures,
        remedy="Remove the file: the next run writes a new one, and has no last run to compare "
        "with.",
    )


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """How a run ended; a run that is killed has none.

    Attributes:
        epoch: The number of the run.
        command: The command that ran, such as ``embed``.
        started_at: When it had the lock, in UTC by the driver's clock.
        ended_at: When it was about to release the lock.
        outcome: ``done``, or ``failed``.
        counts: What it counted; empty if it failed.
        error: The class of the error that ended it; empty if it is done.
        message: The message of an error of e5spark; empty for any other.
        versions: Of e5spark, Python, Spark and the driver's packages.
        format: The format of the state file.
    """

    epoch: int
    command: str
    started_at: str
    ended_at: str
    outcome: Outcome
    counts: Mapping[str, int] = field(default_factory=dict)
    error: str = ""
    message: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def __post_init__(self) -> None:
        """Raises ValueError unless the times are in ISO 8601."""
        for moment in (self.started_at, self.ended_at):
            datetime.fromisoformat(moment)
