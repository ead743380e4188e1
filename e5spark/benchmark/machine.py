"""The machine: what it is, and how fast it multiplies matrices, the limit of every contender."""

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
from e5spark.cpus import available_cpus

_FLAGS = (
    *("avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx_vnni"),
    *("amx_tile", "amx_bf16", "amx_int8"),
    *("asimddp", "bf16", "i8mm", "sve"),  # ARM's
)
_PACKAGES = (
    *("torch", "transformers", "tokenizers", "sentence-transformers", "openvino", "nncf"),
    *("onnxruntime", "optimum-onnx", "optimum-intel", "pyspark", "pyarrow", "pandas", "numpy"),
)


def describe() -> dict[str, Any]:
    """Returns CPU, instruction sets that matter, memory, versions and commit."""
    cpuinfo = _read(Path("/proc/cpuinfo"))
    flags = set(_field(cpuinfo, "flags").split()) | set(_field(cpuinfo, "Features").split())
    memory = _field(_read(Path("/proc/meminfo")), "MemTotal").split()
    return {
        "cpu": _field(cpuinfo, "model name") or platform.processor() or platform.machine(),
        "isa": [flag for flag in _FLAGS if flag in flags],
        "cpus": available_cpus(),
        "memory_gb": round(int(memory[0]) / 1e6, 1) if memory else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions(),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S%z"),
    }


def has_native_bf16(machine: dict[str, Any]) -> bool:
    """Returns whether the CPU multiplies bf16; emulated it is slower than fp32."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(machine["isa"]))


def peaks(*, threads: int, hidden: int, ffn: int) -> dict[str, Any]:
    """Returns the measured GEMM peaks; takes a few seconds and a process of its own.

    Args:
        threads: CPU threads.
        hidden: The model's width: its matrices are among those that are tried.
        ffn: The width of its feed-forward part.

    Returns:
        ``gflops``: precision to the best of all sizes and libraries, in 10^9 operations a second;
        ``measured``: the best of each library; ``gpu``: the same of the GPU, if there is one;
        ``not_measured``: what was left out, and why.
    """
    command = [sys.executable, "-m", "e5spark.benchmark.gemm", *map(str, (threads, hidden, ffn))]
    done = subprocess.run(
        command, env=environment(threads), capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"gflops": {}, "not_measured": {"all": done.stderr.strip().splitlines()[-1]}}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def environment(threads: int | None, *, python: str = sys.executable) -> dict[str, str]:
    """Returns the environment of a child: this e5spark, and so many OpenMP threads, if given."""
    # Under spark-submit the gateway is that of this process' own JVM; a child starts another.
    left = ("OMP_NUM_THREADS", "PYSPARK_GATEWAY_PORT", "PYSPARK_GATEWAY_SECRET")
    found = {key: value for key, value in os.environ.items() if key not in left}
    if threads is not None:
        found["OMP_NUM_THREADS"] = str(threads)
    here = str(Path(__file__).parents[2])
    found["PYTHONPATH"] = os.pathsep.join(filter(None, (here, found.get("PYTHONPATH"))))
    # Spark's workers run the interpreter that this names.
    found["PYSPARK_PYTHON"] = found["PYSPARK_DRIVER_PYTHON"] = python
    found.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    return found


def pin(threads: int) -> None:
    """Lets this process and all that it starts use so many CPUs, and no more."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def versions() -> dict[str, str]:
    """Returns the versions of the packages that matter, those of this interpreter."""
    found = {"e5spark": __version__}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """The commit of the checkout that this module lies in; None for an installed package."""
    here = Path(__file__).parents[2]
    if not (here / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--tags"]
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def _read(path: Path) -> str:
    return path.read_text("utf-8", "replace") if path.exists() else ""


def _field(text: str, name: str) -> str:
    lines = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), "")
