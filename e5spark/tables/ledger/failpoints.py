"""Instants at which the tests kill a run, to see that the next one mends what it left."""

import os
import signal
import threading
from collections import Counter

_VARIABLE = "E5SPARK_FAILPOINT"
_passed: Counter[str] = Counter()
_counting = threading.Lock()


def failpoint(name: str) -> None:
    """Ends this process as SIGKILL does, if ``$E5SPARK_FAILPOINT`` names this instant; for tests.

    ``written`` is a chunk staged and not recorded, ``recorded`` recorded and not visible,
    ``publishing`` visible in part; ``rewritten``, ``replacing`` and ``removing`` are the same
    of the step that replaces rows. ``recorded:2`` is the second time that it comes.
    """
    wanted, _, time = os.environ.get(_VARIABLE, "").partition(":")
    if name != wanted:
        return
    with _counting:
        _passed[name] += 1
        if _passed[name] == int(time or 1):
            os.kill(os.getpid(), signal.SIGKILL)
