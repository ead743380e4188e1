"""Texts that end, or never leave, the process that encodes them.

They are armed in processes that find ``sitecustomize`` in a directory of the test: Spark's workers
and the processes that these start, never in the process of the test.
"""

import ctypes
import os
import resource
import signal
from pathlib import Path

SIGKILL, SIGTERM, SEGFAULT, MEMORY, LOOP = (
    f"zz{name} text" for name in ("kill", "term", "segv", "memory", "loop")
)
# Everything is deadly, once a model is loaded.
ALL = "E5SPARK_TEST_KILL_ALL"


def arm(directory: Path) -> str:
    """Writes the module to a directory that then has to be on the path; returns the directory."""
    (directory / "sitecustomize.py").write_text("from tests.killers import patch\npatch()\n")
    return str(directory)


def exhaust() -> None:
    """Takes memory until the kernel gives no more: 512 MB beyond what the process has."""
    size = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 29), limits[1]))
    taken: list[bytearray] = []
    try:
        while True:
            taken.append(bytearray(1 << 26))
    finally:
        taken.clear()
        resource.setrlimit(resource.RLIMIT_AS, limits)


def patch() -> None:
    """Makes the tokenizer of this process die of the texts."""
    from e5spark.encoder.tokenizer import Tokenizer

    tokenize = Tokenizer.tokenize

    def deadly(self: Tokenizer, texts: list[str], max_tokens: int) -> object:
        for text in texts:
            if SIGKILL in text or ALL in os.environ:
                os.kill(os.getpid(), signal.SIGKILL)
            if SIGTERM in text:
                os.kill(os.getpid(), signal.SIGTERM)
            if SEGFAULT in text:
                ctypes.string_at(0)
            if MEMORY in text:
                exhaust()
            while LOOP in text:
                pass
        return tokenize(self, texts, max_tokens)

    Tokenizer.tokenize = deadly
