"""Failpoints: places where a test kills a run, to see that the next run recovers."""

import os
import signal
import threading
from collections import Counter

_VARIABLE = "E5SPARK_FAILPOINT"
_passes: Counter[str] = Counter()
_counting = threading.Lock()


def failpoint(name: str) -> None:
    """Kills this process with SIGKILL if ``$E5SPARK_FAILPOINT`` names this failpoint; for tests.

    ``written``: a chunk is staged and not recorded. ``recorded``: it is recorded and not visible.
    ``publishing``: it is partly visible. ``rewritten``, ``replacing`` and ``removing`` are the
    same for a commit that replaces rows. ``recorded:2`` kills at the second pass.
    """
    target, _, number = os.environ.get(_VARIABLE, "").partition(":")
    if name != target:
        return
    with _counting:
        _passes[name] += 1
        if _passes[name] == int(number or 1):
            os.kill(os.getpid(), signal.SIGKILL)
