"""The contenders as data, and which of them this machine can run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from typing import Any, Literal

from e5spark.cpus import has_native_bf16
from e5spark.encoder.packages import missing as missing_packages
from e5spark.model.engines import ENGINES

Kind = Literal[
    "sentence-transformers", "encoder", "recipe", "predict-batch-udf", "embed", "bare", "constant"
]
RECIPE = "recipe"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A way to turn the rows into vectors.

    Attributes:
        name: The name that ``--only`` and ``--skip`` match.
        kind: The code that runs it.
        workers: Spark workers; 0 means one process without Spark.
        precision: The precision whose GEMM peak is its limit.
        options: Options of ``embed`` and ``Encoder.load``, or of ``SentenceTransformer``.
        model: The directory of its own model, such as a prepared one; None for the common model.
        python: Its interpreter; None for this one.
        missing: Why it cannot run on this machine; None if it can.
    """

    name: str
    kind: Kind
    workers: int = 0
    precision: str = "fp32"
    options: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    python: str | None = None
    missing: str | None = None

    @property
    def transport(self) -> bool:
        """Returns whether it runs no model; such a contender gets more rows than the others."""
        return self.kind in ("bare", "constant")


def contenders(
    machine: Mapping[str, Any], *, threads: int, device: str, prepared: Mapping[str, str]
) -> list[Contender]:
    """Returns all contenders, with a reason where this machine cannot run one.

    Args:
        machine: The result of ``machine.describe``.
        threads: CPUs that each contender may use.
        device: ``cpu``, or the torch device of the GPU.
        prepared: Engine and precision (``openvino-int8``) to the directory of a prepared model.
    """
    native = device != "cpu" or has_native_bf16(machine["isa"])
    result = [
        Contender(name=RECIPE, kind="recipe", workers=threads),
        Contender(name="predict-batch-udf", kind="predict-batch-udf", workers=threads),
        *_sentence_transformers(native, device),
    ]
    engines = list(_engines(native, device, prepared))
    result += [
        _e5spark_contender(engine, "e5spark", kind="encoder", workers=0) for engine in engines
    ]
    splits = [1] if device != "cpu" else sorted({1, threads})
    for workers in splits:
        group = f"{workers}x{threads // workers}"
        result += [
            _e5spark_contender(engine, f"spark-{group}", kind="embed", workers=workers)
            for engine in engines
        ]
    result += [
        Contender(name="transport-bare", kind="bare", workers=threads),
        Contender(name="transport-e5spark", kind="constant", workers=threads),
        Contender(
            name="transport-tokenizer",
            kind="constant",
            workers=threads,
            options={"tokenizer": True},
        ),
    ]
    return result


def selected(
    candidates: Sequence[Contender], *, only: Sequence[str], skip: Sequence[str]
) -> list[Contender]:
    """Returns the contenders whose name matches a pattern of ``only`` and none of ``skip``.

    Without patterns in ``only`` every name matches.
    """
    return [
        contender
        for contender in candidates
        if (not only or any(fnmatch(contender.name, pattern) for pattern in only))
        and not any(fnmatch(contender.name, pattern) for pattern in skip)
    ]


def with_pythons(candidates: Sequence[Contender], pythons: Mapping[str, str]) -> list[Contender]:
    """Returns the contenders, each with the interpreter of the first pattern that it matches.

    Packages missing from another environment show only when the contender runs.
    """
    result = []
    for contender in candidates:
        paths = (path for pattern, path in pythons.items() if fnmatch(contender.name, pattern))
        python = next(paths, None)
        result.append(
            contender if python is None else replace(contender, python=python, missing=None)
        )
    return result


def _sentence_transformers(native: bool, device: str) -> Iterator[Contender]:
    kind: Kind = "sentence-transformers"
    yield Contender(name="st-torch", kind=kind, options={"device": device})
    if native:
        yield _st_torch("bf16", "bfloat16", device)
    if device != "cpu":
        yield _st_torch("fp16", "float16", device)
    yield Contender(
        name="st-onnx",
        kind=kind,
        options={"backend": "onnx", "model_kwargs": {"provider": "CPUExecutionProvider"}},
        missing=_absent("optimum.onnxruntime", package="optimum-onnx[onnxruntime]"),
    )
    # By default OpenVINO computes in bf16 on a CPU that supports it, so both are requested.
    for precision, hint in (("fp32", "f32"), ("bf16", "bf16"))[: 1 + native]:
        yield Contender(
            name="st-openvino" if precision == "fp32" else f"st-openvino-{precision}",
            kind=kind,
            precision=precision,
            options={
                "backend": "openvino",
                "model_kwargs": {"ov_config": {"INFERENCE_PRECISION_HINT": hint}},
            },
            missing=_absent("optimum.intel", package="optimum-intel[openvino]"),
        )


def _st_torch(precision: str, dtype: str, device: str) -> Contender:
    return Contender(
        name=f"st-torch-{precision}",
        kind="sentence-transformers",
        precision=precision,
        options={"device": device, "model_kwargs": {"dtype": dtype}},
    )


def _engines(native: bool, device: str, prepared: Mapping[str, str]) -> Iterator[Contender]:
    """An incomplete contender per engine and precision; ``_e5spark_contender`` completes it."""
    device_type = device.partition(":")[0]
    engines = [name for name in reversed(ENGINES) if device_type in ENGINES[name].devices]
    for engine in engines:
        for precision in ENGINES[engine].precisions:
            name = f"{engine}-{precision}"
            missing = _absent(*ENGINES[engine].packages)
            if precision == "bf16" and not native:
                missing = "the CPU has no bf16 instructions"
            if precision == "int8" and name not in prepared:
                missing = f"it needs a prepared model: --prepared {name}=DIR"
            options = {"precision": precision, "device": device, "engine": engine}
            yield Contender(
                name=name,
                kind="encoder",
                precision=precision,
                options=options,
                model=prepared.get(name),
                missing=missing,
            )


def _e5spark_contender(engine: Contender, group: str, *, kind: Kind, workers: int) -> Contender:
    return Contender(
        name=f"{group}-{engine.name}",
        kind=kind,
        workers=workers,
        precision=engine.precision,
        options=engine.options,
        model=engine.model,
        missing=engine.missing,
    )


def _absent(*modules: str, package: str | None = None) -> str | None:
    """Why a contender is left out: a module that is not installed, or the package it is in."""
    absent = missing_packages(modules)
    return f"{package or absent[0]} is not installed" if absent else None
