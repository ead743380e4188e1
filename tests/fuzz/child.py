"""One process of a fuzzer: runs every n-th case, and says before and after each what it does."""

import json
import os
import sys
import tempfile
import traceback
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

from e5spark.errors import E5SparkError


def outcome(kind: Any, corpus: Any, directory: Path, rng: Random) -> tuple[str, str]:
    """Runs one case; returns how it ended, and what is wrong."""
    notes: list[str] = []
    try:
        return kind.case(corpus, directory, rng, notes), ""
    except E5SparkError as error:
        message = str(error)
        if message and "\n" not in message and len(message) <= 3000:
            return f"refused ({type(error).__name__})", ""
        problem = f"a message of {len(message)} characters: {message[:300]!r} "
    except Exception:
        problem = "".join(traceback.format_exc().splitlines(keepends=True)[-14:])
    return "failed", f"{problem}[{'; '.join(note[:1500] for note in notes)}]"


def generator(kind: str, seed: int, number: int) -> Random:
    """The generator of a case."""
    return Random(f"{kind}/{seed}/{number}")


def main() -> None:
    name, *numbers = sys.argv[1:]
    first, end, step, seed = map(int, numbers)
    say = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a model's library prints is no answer
    kind = import_module(f"tests.fuzz.{name}")
    with tempfile.TemporaryDirectory(prefix="e5spark-fuzz-") as scratch:
        corpus = kind.corpus(Path(scratch))
        for number in range(first, end, step):
            print(json.dumps({"begins": number}), file=say, flush=True)
            directory = Path(scratch) / "case"
            directory.mkdir()
            how, problem = outcome(kind, corpus, directory, generator(name, seed, number))
            kind.cleanup(directory)
            print(json.dumps({"outcome": how, "problem": problem}), file=say, flush=True)


if __name__ == "__main__":
    main()
