"""The machine: what it is, and how fast it multiplies matrices, the limit of every contender.

Run as a program, it measures the peaks and prints them as JSON, so that the benchmark itself
needs no engine and each measurement has a process, and threads, of its own.
"""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from e5spark import __version__

_FLAGS = (
    *("avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx_vnni"),
    *("amx_tile", "amx_bf16", "amx_int8"),
    *("asimddp", "bf16", "i8mm", "sve"),  # ARM's
)
_PACKAGES = (
    *("torch", "transformers", "tokenizers", "sentence-transformers", "openvino", "nncf"),
    *("onnxruntime", "optimum-onnx", "optimum-intel", "pyspark", "pyarrow", "pandas", "numpy"),
)
_SECONDS = 0.3  # of each measurement


def available_cpus() -> int:
    """Returns how many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
        "versions": {"e5spark": __version__, **_versions()},
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
        ``gflops``: precision to the best of all sizes, in 10^9 operations a second; ``gpu`` the
        same of the GPU, if there is one; ``not_measured``: precision to why.
    """
    command = [sys.executable, "-m", __name__, *map(str, (threads, hidden, ffn))]
    done = subprocess.run(
        command, env=environment(threads), capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"gflops": {}, "not_measured": {"all": done.stderr.strip().splitlines()[-1]}}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def environment(threads: int | None) -> dict[str, str]:
    """Returns the environment of a child: this e5spark, and so many OpenMP threads, if given."""
    found = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    if threads is not None:
        found["OMP_NUM_THREADS"] = str(threads)
    here = str(Path(__file__).parents[2])
    found["PYTHONPATH"] = os.pathsep.join(filter(None, (here, found.get("PYTHONPATH"))))
    # Spark's workers run the interpreter that this names.
    found["PYSPARK_PYTHON"] = found["PYSPARK_DRIVER_PYTHON"] = sys.executable
    found.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    return found


def pin(threads: int) -> None:
    """Lets this process and all that it starts use so many CPUs, and no more."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def _measure(threads: int, hidden: int, ffn: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(threads)
    # One of the model's micro-batches through its widest layers, and a square.
    sizes = [(2048, hidden, ffn), (2048, ffn, hidden), (2048, 2048, 2048)]
    gflops: dict[str, float] = {"fp32": _best(sizes, _torch_gemm("cpu", torch.float32))}
    left_out: dict[str, str] = {}
    if has_native_bf16(describe()):
        gflops["bf16"] = _best(sizes, _torch_gemm("cpu", torch.bfloat16))
    else:
        left_out["bf16"] = "the CPU has no bf16 instructions"
    by_tool = {"torch": _best(sizes, _torch_int8)}
    try:
        by_tool["openvino"] = _best(sizes, _openvino_int8(threads))
    except ImportError:
        left_out["int8 by openvino"] = "openvino is not installed"
    gflops["int8"] = max(by_tool.values())
    found = {"gflops": gflops, "int8_by": by_tool, "not_measured": left_out}
    return found | ({"gpu": _gpu()} if torch.cuda.is_available() else {})


def _gpu() -> dict[str, Any]:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    sizes = [(8192, 8192, 8192)]
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "cuda": torch.version.cuda,
        "gflops": {name: _best(sizes, _torch_gemm("cuda", kind)) for name, kind in kinds.items()},
    }


Size = tuple[int, int, int]
Gemm = Callable[[Size], Callable[[], object]]


def _best(sizes: list[Size], gemm: Gemm) -> float:
    """The fastest size, in 10^9 operations a second; of several passes the fastest."""
    best = 0.0
    for size in sizes:
        multiply = gemm(size)
        multiply()
        until = time.perf_counter() + _SECONDS
        while (begun := time.perf_counter()) < until:
            multiply()
            rows, inner, columns = size
            seconds = time.perf_counter() - begun
            best = max(best, 2e-9 * rows * inner * columns / seconds)
    return round(best, 1)


def _torch_gemm(device: str, kind: Any) -> Gemm:  # noqa: ANN401  # a torch dtype
    import torch

    def gemm(size: Size) -> Callable[[], object]:
        rows, inner, columns = size
        left = torch.randn(rows, inner, device=device).to(kind)
        right = torch.randn(columns, inner, device=device).to(kind)

        @torch.inference_mode()
        def multiply() -> object:
            product = torch.nn.functional.linear(left, right)
            if device != "cpu":
                torch.cuda.synchronize()
            return product

        return multiply

    return gemm


def _torch_int8(size: Size) -> Callable[[], object]:
    import torch

    rows, inner, columns = size
    left = torch.randint(-127, 127, (rows, inner), dtype=torch.int8)
    right = torch.randint(-127, 127, (inner, columns), dtype=torch.int8)
    return lambda: torch._int_mm(left, right)


def _openvino_int8(threads: int) -> Gemm:
    import numpy as np
    import openvino
    from openvino import opset13 as ops

    def gemm(size: Size) -> Callable[[], object]:
        rows, inner, columns = size
        random = np.random.default_rng(0)
        floats = ops.parameter([rows, inner], np.float32)
        low, high = np.float32(-1), np.float32(1)
        quantised = ops.fake_quantize(floats, low, high, low, high, 256)
        weights = random.integers(-127, 127, (columns, inner)).astype(np.int8)
        scaled = ops.multiply(ops.convert(ops.constant(weights), np.float32), np.float32(0.01))
        product = ops.matmul(quantised, scaled, False, True)
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        model = openvino.Model([product], [floats], "gemm")
        request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
        request.set_input_tensor(openvino.Tensor(random.random((rows, inner), dtype=np.float32)))
        infer: Callable[[], object] = request.infer
        return infer

    return gemm


def _versions() -> dict[str, str]:
    found = {}
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


if __name__ == "__main__":
    _threads, _hidden, _ffn = map(int, sys.argv[1:])
    pin(_threads)
    sys.stdout.write(json.dumps(_measure(_threads, _hidden, _ffn)) + "\n")
