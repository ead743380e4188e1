"""What a child process is told to do, and the shape of what it answers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

SAMPLE = 16  # texts that are embedded first, and whose vectors are compared


@dataclass(frozen=True, kw_only=True)
class Task:
    """A contender and its rows, as they cross the pipe.

    Attributes:
        name: Of the contender.
        kind: Which code runs it.
        python: Interpreter of its process.
        model: Directory of its checkpoint.
        checkpoint: The known checkpoint that the directory holds, if any.
        options: Of the contender.
        texts: Parquet file with the one column ``text``.
        role: What the texts are for.
        prefix: What the role puts before a text.
        threads: CPUs in all.
        workers: Spark workers, which share them; 0 without Spark.
        partitions: Spark tasks that the rows are cut into.
        copies: How often each text is taken; each copy gets a number put before it.
        work: A directory for what the processes note down.
    """

    name: str
    kind: str
    python: str
    model: str
    checkpoint: str | None
    options: dict[str, Any]
    texts: str
    role: str
    prefix: str
    threads: int
    workers: int
    partitions: int
    copies: int
    work: str

    @property
    def model_options(self) -> dict[str, Any]:
        """Returns the options of ``embed`` and ``Encoder.load``."""
        known = {} if self.checkpoint is None else {"checkpoint": self.checkpoint}
        return {**known, **self.options}

    def read_texts(self) -> list[str]:
        """Returns the texts, without their prompt."""
        table: pa.Table = pq.read_table(self.texts)
        texts: list[str] = table["text"].to_pylist()
        return texts


@dataclass(frozen=True, kw_only=True)
class Started:
    """A contender that is ready to run.

    Attributes:
        vectors: Of the first texts, in order; None if it makes none that mean anything.
        first_vector_seconds: From the start of its task (in a process without Spark: from the
            first import) to the first vectors; loading is in it.
        embed: Embeds every row once.
        warm_up: Called before each run; Spark ends workers that had nothing to do for a minute.
        stop: Called at the end.
    """

    vectors: npt.NDArray[np.float32] | None
    first_vector_seconds: float | None
    embed: Callable[[], None]
    warm_up: Callable[[], None]
    stop: Callable[[], None]


def ledger_directory(work: str, name: str) -> Path:
    """Returns the directory of a contender's ledger, made if need be."""
    directory = Path(work) / "ledger" / name
    directory.mkdir(parents=True, exist_ok=True)
    return directory
