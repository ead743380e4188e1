"""The Java process that a command starts for Spark: cheap to start, quiet, and with enough memory.

Most of the CPU time of a short run is the JIT's: it compiles code that runs a few times. Its second
compiler (C2) waits here for ten times as many calls: a run with nothing to do takes 13.7 s of CPU
time instead of 18.4, and one over 1,000,000 unchanged rows takes 20.5 s instead of 27.5.
"""

import logging
import os
import sys
import threading
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from e5spark.limits import MemoryCeiling

log = logging.getLogger("e5spark")

# HotSpot's defaults, ten times: 5000, 600, 15000 and 40000. Other JVMs lack these options.
_LATE_C2 = (
    "-XX:+IgnoreUnrecognizedVMOptions",
    "-XX:Tier4InvocationThreshold=50000",
    "-XX:Tier4MinInvocationThreshold=6000",
    "-XX:Tier4CompileThreshold=150000",
    "-XX:Tier4BackEdgeThreshold=400000",
)
_QUIET = Path(__file__).with_name("log4j2.properties")
# Spark's own default is 1 GB, which a few long texts exhaust: on one machine this JVM is the
# executor, too. More than 8 GB would only keep garbage longer.
_LEAST_HEAP, _MOST_HEAP = 1 << 30, 8 << 30
# multilingual-e5-large takes 3.1 GB.
LARGE_MODEL = 4 << 30
_LINES = 20
# The line between what a JVM prints while it starts and what it prints later.
_STARTED, _SECONDS = "e5spark: Spark has started\n", 5.0


def is_verbose() -> bool:
    """Returns whether Spark's own log is shown, as with ``-v``."""
    return log.isEnabledFor(logging.DEBUG)


def heap_bytes(ceilings: Iterable[MemoryCeiling], *, model: int = LARGE_MODEL) -> int | None:
    """Returns the heap that suits this machine: half of what a model and other processes leave.

    The other half is for texts and vectors in Python, and for what a JVM takes beside its heap.

    Args:
        ceilings: The limits of this machine.
        model: Bytes of the model in a worker.

    Returns:
        A size from 1 to 8 GB; None if there is no more than Spark's default, or no known limit.
    """
    left = [limit.bytes - limit.others for limit in ceilings if limit.kind == "resident"]
    if not left:
        return None
    size = min(_MOST_HEAP, (min(left) - model) // 2)
    return size if size > _LEAST_HEAP else None


@contextmanager
def started_here(*, heap: int | None = None) -> Iterator[None]:
    """Prepares the start of a JVM by PySpark inside the block, and keeps it quiet afterwards.

    Everything goes through the environment and is what Spark reads last: the user's settings,
    in a job file, in ``PYSPARK_SUBMIT_ARGS`` or in ``spark-defaults.conf``, win.

    Args:
        heap: Bytes of its heap; None for Spark's default.
    """
    if not is_verbose() and not sys.warnoptions:
        warnings.simplefilter("ignore")
    with _environment(_variables(heap)):
        if is_verbose():
            yield
        else:
            with _without_chatter():
                yield


def _variables(heap: int | None) -> Mapping[str, str]:
    # spark-submit reads the options of two JVMs here: of the one that only puts the command line
    # of Spark's together, and of Spark's.
    options = {
        "SPARK_LAUNCHER_OPTS": ["-XX:TieredStopAtLevel=1"],
        "SPARK_SUBMIT_OPTS": [*_LATE_C2],
    }
    defaults = {} if heap is None else {"SPARK_DRIVER_MEMORY": f"{heap >> 20}m"}
    if not is_verbose():
        defaults["PYTHONWARNINGS"] = "ignore"  # of the workers
        if not _has_log_configuration():
            options["SPARK_SUBMIT_OPTS"].append(f'"-Dlog4j2.configurationFile={_QUIET.as_uri()}"')
    return {
        **{name: os.environ.get(name, value) for name, value in defaults.items()},
        **{
            name: " ".join((*values, os.environ.get(name, ""))).strip()
            for name, values in options.items()
        },
    }


def _has_log_configuration() -> bool:
    homes = [os.environ.get("SPARK_CONF_DIR"), f"{os.environ.get('SPARK_HOME', '')}/conf"]
    return any(home and Path(home, "log4j2.properties").exists() for home in homes)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Keeps back what a JVM prints while it starts, and Java's own warnings for as long as it runs.

    Java warns of each of Spark's incubator modules, and Ivy tells of each jar that it resolves. All
    else is passed on, such as a crash or what a Python worker prints. If the start fails, the last
    lines are shown: only there Ivy says which jar it has not found.
    """
    sys.stderr.flush()
    own = os.dup(2)
    ours, theirs = os.pipe()
    kept: deque[str] = deque(maxlen=_LINES)
    has_read = threading.Event()

    def pass_on() -> None:
        with open(ours, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line == _STARTED:
                    has_read.set()
                elif line.startswith("WARNING: "):
                    continue
                elif not has_read.is_set():
                    kept.append(line)
                else:
                    with suppress(ValueError, OSError):  # a closed stream
                        sys.stderr.write(line)

    os.dup2(theirs, 2)
    os.close(theirs)
    threading.Thread(target=pass_on, name="e5spark stderr", daemon=True).start()
    failed = True
    try:
        yield
        failed = False
    finally:
        os.write(2, _STARTED.encode())
        os.dup2(own, 2)
        os.close(own)
        if failed and has_read.wait(_SECONDS):
            sys.stderr.writelines(line for line in kept if not line.startswith("\tat "))
