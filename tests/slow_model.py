"""A model that takes its time, so that an executor can leave while a task is embedding.

It is armed as ``tests.killers`` is: in processes that find ``sitecustomize`` in a directory of the
test, which are Spark's workers and the processes that these start.
"""

import time
from pathlib import Path

SECONDS_PER_TEXT = 0.1


def arm(directory: Path) -> str:
    """Writes the module to a directory that then has to be on the path; returns the directory."""
    (directory / "sitecustomize.py").write_text("from tests.slow_model import patch\npatch()\n")
    return str(directory)


def patch() -> None:
    """Makes the tokenizer of this process slow."""
    from e5spark.encoder.tokenizer import Tokenizer

    tokenize = Tokenizer.tokenize

    def slow(self: Tokenizer, texts: list[str], max_tokens: int) -> object:
        time.sleep(SECONDS_PER_TEXT * len(texts))
        return tokenize(self, texts, max_tokens)

    Tokenizer.tokenize = slow
