"""The records of a ledger: one for each commit to a table, and the figures of the last run."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from e5spark.tables.ledger.documents import FORMAT

Kind = Literal["append", "deferred", "replace"]


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
        format: The format of the state file.
    """

    name: str
    kind: Kind
    files: tuple[str, ...] = ()
    rows: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    removes: tuple[str, ...] = ()
    includes: tuple[str, ...] = ()
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
