"""The speed of matrix products on this machine, with the libraries that engines are built on.

This is a program, so that the benchmark itself needs no engine and the measurement has its own
process and threads: ``python -m e5spark.benchmark.gemm THREADS HIDDEN FFN SECONDS`` prints JSON.
"""

import importlib.util
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from e5spark.benchmark.machine import pin
from e5spark.cpus import has_native_bf16, instruction_sets

Size = tuple[int, int, int]  # rows, inner, columns
Gemm = Callable[[Size], Callable[[], object]]


def main() -> None:
    """Prints the result that ``machine.peaks`` describes."""
    threads, hidden, ffn = map(int, sys.argv[1:4])
    pin(threads)
    result = _measure(threads, hidden, ffn, seconds=float(sys.argv[4]))
    sys.stdout.write(json.dumps(result) + "\n")


def _measure(threads: int, hidden: int, ffn: int, *, seconds: float) -> dict[str, Any]:
    import torch

    torch.set_num_threads(threads)
    # A micro-batch through the model's widest layers, and a square.
    sizes = [(2048, hidden, ffn), (2048, ffn, hidden), (2048, 2048, 2048)]
    native = has_native_bf16(instruction_sets())
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
        name: _best(sizes, gemm, seconds)
        for name, gemm in gemms.items()
        if native or "bf16" not in name
    }
    gflops: dict[str, float] = {}
    for name, value in measured.items():
        kind = name.split()[0]
        gflops[kind] = max(value, gflops.get(kind, 0.0))
    result = {"gflops": gflops, "measured": measured, "not_measured": left_out}
    return result | ({"gpu": _gpu(seconds)} if torch.cuda.is_available() else {})


def _gpu(seconds: float) -> dict[str, Any]:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    sizes = [(8192, 8192, 8192)]
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "cuda": torch.version.cuda,
        "gflops": {
            name: _best(sizes, _torch_gemm("cuda", kind), seconds) for name, kind in kinds.items()
        },
    }


def _best(sizes: list[Size], gemm: Gemm, seconds: float) -> float:
    """The fastest pass over all sizes, in 10^9 operations per second."""
    best = 0.0
    for rows, inner, columns in sizes:
        multiply = gemm((rows, inner, columns))
        multiply()
        end = time.perf_counter() + seconds
        while (started := time.perf_counter()) < end:
            multiply()
            elapsed = time.perf_counter() - started
            best = max(best, 2e-9 * rows * inner * columns / elapsed)
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
    """A product as in a compiled model: weights are constants, packed before the first pass."""
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
        parameter = floats = ops.parameter([rows, inner], np.float32)
        weights = ops.constant(random.random((columns, inner), dtype=np.float32))
        if precision == "int8":
            low, high = np.float32(-1), np.float32(1)
            floats = ops.fake_quantize(floats, low, high, low, high, 256)
            integers = ops.constant(random.integers(-127, 127, (columns, inner)).astype(np.int8))
            weights = ops.multiply(ops.convert(integers, np.float32), np.float32(0.01))
        model = openvino.Model([ops.matmul(floats, weights, False, True)], [parameter], "gemm")
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        request.set_input_tensor(openvino.Tensor(random.random((rows, inner), dtype=np.float32)))
        infer: Callable[[], object] = request.infer
        return infer

    return gemm


if __name__ == "__main__":
    main()
