"""A log of a contender's forward passes in all its processes: one line per pass."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

_DIRECTORY = "E5SPARK_BENCHMARK_PASSES"


@dataclass(frozen=True, kw_only=True)
class Totals:
    """The totals of the forward passes since a point in time.

    Attributes:
        tokens: Tokens without padding.
        padded: Tokens with padding.
        first: When the first forward pass ended, in seconds since the epoch; None without passes.
    """

    tokens: int
    padded: int
    first: float | None


def open_log(directory: Path) -> None:
    """Sets the directory of the log for this process and its descendants."""
    os.environ[_DIRECTORY] = str(directory)


def record(tokens: int, padded: int) -> None:
    """Records a forward pass that has just ended.

    Args:
        tokens: Tokens without padding.
        padded: Tokens with padding.
    """
    line = json.dumps([time.time(), tokens, padded])
    path = Path(os.environ[_DIRECTORY]) / f"{os.getpid()}.jsonl"
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def totals(since: float) -> Totals:
    """Returns the totals of the passes that ended at or after a point in time.

    Args:
        since: Seconds since the epoch.
    """
    directory = Path(os.environ[_DIRECTORY])
    lines = [line for path in directory.glob("*.jsonl") for line in path.read_text().splitlines()]
    passes = [entry for entry in map(json.loads, lines) if entry[0] >= since]
    return Totals(
        tokens=sum(tokens for _, tokens, _ in passes),
        padded=sum(padded for _, _, padded in passes),
        first=min((ended for ended, _, _ in passes), default=None),
    )
