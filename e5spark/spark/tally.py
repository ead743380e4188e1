"""How far a task has come, in a small file on the driver's own machine.

Spark counts a task's rows when it ends, and on one machine a task may embed for minutes. Each
attempt has a file of its own; only the furthest attempt of a partition counts, so rows that are
embedded again are not counted twice.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pyspark import TaskContext

_SECONDS = 0.2
_WIDTH = 20  # digits: a number never becomes shorter, so a file is rewritten in one piece

Batch = Callable[[float, int], None]


def tally(directory: str | None) -> "Tally | None":
    """Returns the tally of the task that runs here; None without a directory or a task."""
    context = TaskContext.get()
    if directory is None or context is None or not os.path.isdir(directory):
        return None  # another machine's
    name = f"{context.partitionId()}-{context.taskAttemptId()}"
    return Tally(Path(directory, name))


def read(directory: Path) -> tuple[int, int]:
    """Returns the rows and the tokens that the tasks below a directory have embedded so far."""
    furthest: dict[str, tuple[int, int]] = {}
    for path in directory.glob("*-*"):
        with suppress(OSError, ValueError):  # just created
            rows, tokens = map(int, path.read_text("ascii").split())
            partition = path.name.partition("-")[0]
            furthest[partition] = max(furthest.get(partition, (0, 0)), (rows, tokens))
    return sum(rows for rows, _ in furthest.values()), sum(
        tokens for _, tokens in furthest.values()
    )


class Tally:
    """The rows and tokens that one attempt of a task has embedded."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows = self._tokens = 0
        self._written = 0.0

    def window(self, rows: int) -> Batch:
        """Returns a function that takes the share of a sort window and the tokens of a batch."""
        share_done = 0.0

        def batch(share: float, tokens: int) -> None:
            nonlocal share_done
            share_done += share
            self._tokens += tokens
            self._write(self._rows + int(rows * min(share_done, 1.0)))

        return batch

    def finish(self, rows: int) -> None:
        """Counts the rows of a sort window that is embedded."""
        self._rows += rows
        self._written = 0.0
        self._write(self._rows)

    def _write(self, rows: int) -> None:
        now = time.monotonic()
        if now - self._written < _SECONDS:
            return
        self._written = now
        with suppress(OSError):  # the run has ended, or the disk is full: only the display lacks it
            self._path.write_text(f"{rows:>{_WIDTH}} {self._tokens:>{_WIDTH}}", "ascii")
