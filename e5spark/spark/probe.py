"""What a task reports about the executor that runs it, for a worker that may lack every package.

These functions are pickled by value and use the standard library alone: they answer where e5spark,
pyarrow or pandas are missing, or are other ones than the driver's. Everything that needs e5spark is
in ``e5spark.spark.inspection``, which ``report`` imports only where it can.
"""

import contextlib
import importlib.metadata
import itertools
import json
import os
import platform
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PACKAGES = (
    *("e5spark", "numpy", "pandas", "pyarrow", "tokenizers"),
    *("openvino", "torch", "transformers", "safetensors", "pyspark"),
)
PREFIX = ".e5spark-doctor-"  # of all that a doctor writes, for as long as it runs


def task(request: Mapping[str, Any]) -> Callable[[int], str]:
    """Returns the function that a task runs: from its number to a report, as JSON.

    Args:
        request: See ``report``.
    """

    def run(number: int) -> str:
        started = time.monotonic()
        result = report(request)
        # Otherwise a quick executor would take the tasks of those that have not started yet.
        time.sleep(max(0.0, float(request["hold"]) - (time.monotonic() - started)))
        return json.dumps({"number": number, **result})

    return run


def report(request: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what this process is, and what it finds on its machine.

    Args:
        request: ``hold``, the least seconds of a task; ``answered``, keys of executors that have
            answered before and only count their workers; ``plan``, a pickled plan or None;
            ``inspect``, False to import no package that may end the process; ``directories``, a
            name and a path for each local directory to be written; and ``markers``, a file of the
            driver in each of them.
    """
    machine = socket.gethostname()
    executor, host, parent = _executor()
    result: dict[str, Any] = {
        "key": f"{machine}:{parent}",
        "host": host or machine,
        "executor": executor,
        "pid": os.getpid(),
    }
    if result["key"] in request["answered"]:
        return result
    return result | {
        "python": platform.python_version(),
        "executable": sys.executable,
        "system": platform.platform(),
        "versions": {name: _version(name) for name in PACKAGES},
        "directories": {
            name: directory(path, request.get("markers", {}).get(name, ""))
            for name, path in request.get("directories", {}).items()
        },
        **_machine(),
        **(_inspection(request.get("plan")) if request.get("inspect", True) else {}),
    }


def directory(path: str, marker: str = "") -> dict[str, Any]:
    """Returns whether this process can make and write a directory; nothing of it stays.

    Args:
        path: A local directory, which need not exist.
        marker: The path of a file that the driver has written there.
    """
    existing = Path(path)
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    result = {
        "path": path,
        "nearest": str(existing),
        "problem": "",
        "shows_marker": not marker or os.path.exists(marker),
    }
    try:
        made = tempfile.mkdtemp(prefix=PREFIX, dir=existing)
        try:
            Path(made, "file").write_bytes(b"e5spark")
        finally:
            with contextlib.suppress(OSError):
                Path(made, "file").unlink(missing_ok=True)
            os.rmdir(made)
    except OSError as error:
        result["problem"] = error.strerror or str(error)
    return result


def _machine() -> dict[str, Any]:
    """The CPU and the limits on memory; nothing where e5spark is missing."""
    try:
        from e5spark.cpus import available_cpus, cpu_name, instruction_sets
        from e5spark.limits import memory_ceilings
    except Exception:  # which the inspection says
        return {}
    return {
        "cpu": cpu_name(),
        "isa": instruction_sets(),
        "cpus": available_cpus(),
        "memory": [vars(ceiling) for ceiling in memory_ceilings()],
    }


def _inspection(plan: bytes | None) -> dict[str, Any]:
    try:
        from e5spark.spark.inspection import inspect
    except Exception as error:  # whatever is broken there is what to report
        return {"import_error": f"{type(error).__name__}: {error}"}
    return inspect(plan)


def _executor() -> tuple[str, str, int]:
    """The executor's id and its host as Spark calls them, and the process id of its JVM.

    The JVM is the parent of the daemon that forks workers. Without /proc the daemon stands for it:
    an executor has one.
    """
    process = os.getpid()
    for _ in range(4):
        try:
            arguments = Path(f"/proc/{process}/cmdline").read_bytes().decode("utf-8", "replace")
            status = Path(f"/proc/{process}/stat").read_text("utf-8", "replace")
        except OSError:
            break
        words = arguments.split("\0")
        if any(word.startswith("org.apache.spark.") for word in words):
            options = dict(itertools.pairwise(words))
            name = options.get("--executor-id", "driver")
            return name, options.get("--hostname", ""), process
        process = int(status.rpartition(")")[2].split()[1])
    return os.environ.get("SPARK_EXECUTOR_ID", ""), "", os.getppid()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
    try:  # from a zip or a directory on the path, as Spark ships pyspark
        module = __import__(name) if name in ("e5spark", "pyspark") else None
    except Exception:
        return None
    version = getattr(module, "__version__", None)
    return None if version is None else str(version)
