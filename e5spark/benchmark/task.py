"""The task of a contender's process, and the contender that the process loads for it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

SAMPLE = 16  # texts that are embedded first; their vectors are compared


@dataclass(frozen=True, kw_only=True)
class Task:
    """A contender and its rows, as JSON for the contender's process.

    Attributes:
        name: The contender's name.
        kind: The code that runs it; see ``Contender``.
        python: The interpreter of its process.
        model: The directory of its checkpoint.
        checkpoint: The known checkpoint that the directory holds, if any.
        options: The contender's options.
        texts: A Parquet file with the single column ``text``.
        role: The role of the texts.
        prefix: The prefix that the role adds to a text.
        threads: CPUs in total.
        workers: Spark workers, which share the CPUs; 0 without Spark.
        partitions: Spark partitions of the rows.
        copies: Number of copies of each text; each copy gets a number before it.
        work: A directory for the log of forward passes.
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
        checkpoint = {} if self.checkpoint is None else {"checkpoint": self.checkpoint}
        return {**checkpoint, **self.options}

    def read_texts(self) -> list[str]:
        """Returns the texts, without prompts."""
        table: pa.Table = pq.read_table(self.texts)
        texts: list[str] = table["text"].to_pylist()
        return texts


@dataclass(frozen=True, kw_only=True)
class LoadedContender:
    """A contender that is ready to run.

    Attributes:
        vectors: The vectors of the first texts, in order; None if they have no
            meaning.  # (SAMPLE, dim)
        first_vector_seconds: Seconds from the start of its Spark task (without Spark, from the
            first import) to the first vectors, loading included.
        embed: Embeds every row once.
        warm_up: Called before each run, because Spark ends workers that were idle for a minute.
        stop: Called at the end.
    """

    vectors: npt.NDArray[np.float32] | None
    first_vector_seconds: float | None
    embed: Callable[[], None]
    warm_up: Callable[[], None]
    stop: Callable[[], None]


def passes_directory(work: str, name: str) -> Path:
    """Returns the directory of a contender's log of forward passes; makes it if necessary."""
    directory = Path(work) / "passes" / name
    directory.mkdir(parents=True, exist_ok=True)
    return directory
