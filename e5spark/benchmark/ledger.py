"""What went through a model, whichever process it ran in: one line for each forward pass."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

_DIRECTORY = "E5SPARK_BENCHMARK_LEDGER"


@dataclass(frozen=True, kw_only=True)
class Account:
    """What went through since a moment.

    Attributes:
        tokens: Without padding.
        padded: With padding.
        first: When the first forward pass ended, in seconds since the epoch; None without any.
    """

    tokens: int
    padded: int
    first: float | None


def open_ledger(directory: Path) -> None:
    """Names the directory, to this process and to all that it starts."""
    os.environ[_DIRECTORY] = str(directory)


def note(tokens: int, padded: int) -> None:
    """Writes down a forward pass that has just ended."""
    line = json.dumps([time.time(), tokens, padded])
    path = Path(os.environ[_DIRECTORY]) / f"{os.getpid()}.jsonl"
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def account(since: float) -> Account:
    """Returns what went through after a moment, given in seconds since the epoch."""
    directory = Path(os.environ[_DIRECTORY])
    lines = [line for path in directory.glob("*.jsonl") for line in path.read_text().splitlines()]
    passes = [each for each in map(json.loads, lines) if each[0] >= since]
    return Account(
        tokens=sum(tokens for _, tokens, _ in passes),
        padded=sum(padded for _, _, padded in passes),
        first=min((when for when, _, _ in passes), default=None),
    )
