"""How fast this machine multiplies matrices, with the libraries that engines are made of.

A program, so that the benchmark itself needs no engine and the measurement has a process, and
threads, of its own: ``python -m e5spark.benchmark.gemm THREADS HIDDEN FFN`` prints JSON.
"""

import importlib.util
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from e5spark.benchmark.machine import describe, has_native_bf16, pin

Size = tuple[int, int, int]
Gemm = Callable[[Size], Callable[[], object]]
_SECONDS = 0.3  # of each size


def main() -> None:
    """Measures and prints; ``machine.peaks`` says what."""
    threads, hidden, ffn = map(int, sys.argv[1:])
    pin(threads)
    sys.stdout.write(json.dumps(_measure(threads, hidden, ffn)) + "\n")


def _measure(threads: int, hidden: int, ffn: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(threads)
    # One of the model's micro-batches through its widest layers, and a square.
    sizes = [(2048, hidden, ffn), (2048, ffn, hidden), (2048, 2048, 2048)]
    native = has_native_bf16(describe())
    gemms: dict[str, Gemm] = {
        "fp32 torch": _torch_gemm("cpu", torch.float32),
        "bf16 torch": _torch_gemm("cpu", torch.bfloat16),
        "int8 torch": _torch_int8,
    }
    left_out: dict[str, str] = {}
    if importlib.util.find_spec("openvino") is None:
        left_out["openvino"] = "it is not installed"
    else:
        gemms |= {
            f"{kind} openvino": _openvino_gemm(kind, threads) for kind in ("fp32", "bf16", "int8")
        }
    if not native:
        left_out["bf16"] = "the CPU has no bf16 instructions"
    measured = {
        name: _best(sizes, gemm) for name, gemm in gemms.items() if native or "bf16" not in name
    }
    gflops: dict[str, float] = {}
    for name, value in measured.items():
        kind = name.split()[0]
        gflops[kind] = max(value, gflops.get(kind, 0.0))
    found = {"gflops": gflops, "measured": measured, "not_measured": left_out}
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


def _openvino_gemm(precision: str, threads: int) -> Gemm:
    """As in a compiled model: the weights are constants, packed before the first pass."""
    import numpy as np
    import openvino
    from openvino import opset13 as ops

    hint = "bf16" if precision == "bf16" else "f32"
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": hint,
        "PERFORMANCE_HINT": "LATENCY",
    }
    core = openvino.Core()

    def gemm(size: Size) -> Callable[[], object]:
        rows, inner, columns = size
        random = np.random.default_rng(0)
        given = floats = ops.parameter([rows, inner], np.float32)
        weights = ops.constant(random.random((columns, inner), dtype=np.float32))
        if precision == "int8":
            low, high = np.float32(-1), np.float32(1)
            floats = ops.fake_quantize(floats, low, high, low, high, 256)
            whole = ops.constant(random.integers(-127, 127, (columns, inner)).astype(np.int8))
            weights = ops.multiply(ops.convert(whole, np.float32), np.float32(0.01))
        model = openvino.Model([ops.matmul(floats, weights, False, True)], [given], "gemm")
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        request.set_input_tensor(openvino.Tensor(random.random((rows, inner), dtype=np.float32)))
        infer: Callable[[], object] = request.infer
        return infer

    return gemm


if __name__ == "__main__":
    main()
