"""The machine: its description, and its GEMM peaks, which limit every contender."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from e5spark import __version__
from e5spark.cpus import available_cpus, cpu_name, instruction_sets

_PACKAGES = (
    *("torch", "transformers", "tokenizers", "sentence-transformers", "openvino", "nncf"),
    *("onnxruntime", "optimum-onnx", "optimum-intel", "pyspark", "pyarrow", "pandas", "numpy"),
)


def describe() -> dict[str, Any]:
    """Returns the machine's CPU, relevant instruction sets, memory, versions and commit."""
    memory = _field(_read(Path("/proc/meminfo")), "MemTotal").split()
    return {
        "cpu": cpu_name() or platform.processor() or platform.machine(),
        "isa": instruction_sets(),
        "cpus": available_cpus(),
        "memory_gb": round(int(memory[0]) / 1e6, 1) if memory else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions(),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S%z"),
    }


def peaks(*, threads: int, hidden: int, ffn: int, seconds: float) -> dict[str, Any]:
    """Returns the GEMM peaks, measured for a few seconds in a separate process.

    Args:
        threads: CPU threads.
        hidden: The model's width; its matrices are among the measured ones.
        ffn: The width of its feed-forward part.
        seconds: Seconds for each library and size of matrix.

    Returns:
        ``gflops``: precision to the best of all sizes and libraries, in 10^9 operations per second;
        ``measured``: the best of each library; ``gpu``: the peaks of the GPU, if there is one;
        ``not_measured``: library or precision to the reason why it was left out.
    """
    arguments = map(str, (threads, hidden, ffn, seconds))
    process = subprocess.run(
        [sys.executable, "-m", "e5spark.benchmark.gemm", *arguments],
        env=environment(threads),
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
        return {"gflops": {}, "not_measured": {"all": lines[-1]}}
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return result


def environment(threads: int | None, *, python: str = sys.executable) -> dict[str, str]:
    """Returns the environment variables of a child process, which imports this e5spark.

    Args:
        threads: Number of OpenMP threads; None does not set it.
        python: The interpreter of Spark's workers.
    """
    # Under spark-submit the gateway belongs to this process's JVM; a child starts its own.
    dropped = ("OMP_NUM_THREADS", "PYSPARK_GATEWAY_PORT", "PYSPARK_GATEWAY_SECRET")
    variables = {key: value for key, value in os.environ.items() if key not in dropped}
    if threads is not None:
        variables["OMP_NUM_THREADS"] = str(threads)
    root = str(Path(__file__).parents[2])
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, (root, variables.get("PYTHONPATH"))))
    variables["PYSPARK_PYTHON"] = variables["PYSPARK_DRIVER_PYTHON"] = python
    variables.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    return variables


def pin(threads: int) -> None:
    """Limits this process and its descendants to this many CPUs."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def versions() -> dict[str, str]:
    """Returns the versions of the relevant packages in this interpreter's environment."""
    result = {"e5spark": __version__}
    for name in _PACKAGES:
        try:
            result[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return result


def _commit() -> str | None:
    """The commit of the checkout that has this module; None for an installed package."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--tags"]
    try:
        process = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return process.stdout.strip() or None


def _read(path: Path) -> str:
    return path.read_text("utf-8", "replace") if path.exists() else ""


def _field(text: str, name: str) -> str:
    lines = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), "")
