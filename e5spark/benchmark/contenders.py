"""Who takes part: what each contender is, as data, and which of them this machine can run."""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from typing import Any, Literal

from e5spark.benchmark.machine import has_native_bf16
from e5spark.model.spec import PRECISIONS, ModelOptions

Kind = Literal[
    "sentence-transformers", "encoder", "recipe", "predict-batch-udf", "embed", "bare", "constant"
]
RECIPE = "recipe"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to turn the rows into vectors.

    Attributes:
        name: What ``--only`` and ``--skip`` match.
        kind: Which code runs it.
        workers: Spark workers; 0 means one process without Spark.
        precision: Whose GEMM peak is its limit.
        options: ``embed``'s and ``Encoder.load``'s, or what sentence-transformers' own takes.
        model: A directory to load in place of the common one, such as a prepared model.
        python: Its interpreter, if not this one.
        missing: Why it cannot run here.
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
        """Returns whether no model takes part: it has rows of its own, and more of them."""
        return self.kind in ("bare", "constant")


def contenders(
    machine: Mapping[str, Any], *, threads: int, device: str, prepared: Mapping[str, str]
) -> list[Contender]:
    """Returns everyone, also those that cannot run here, who say why.

    Args:
        machine: As ``machine.describe`` returns it.
        threads: CPUs that each may use.
        device: ``cpu``, or the torch device of the GPU.
        prepared: Engine and precision (``openvino-int8``) to the directory of a prepared model.
    """
    native = device != "cpu" or has_native_bf16(dict(machine))
    found = [
        Contender(name=RECIPE, kind="recipe", workers=threads),
        Contender(name="predict-batch-udf", kind="predict-batch-udf", workers=threads),
        *_sentence_transformers(native, device),
    ]
    engines = list(_engines(native, device, prepared))
    found += [_own(each, "e5spark", kind="encoder", workers=0) for each in engines]
    splits = [1] if device != "cpu" else sorted({1, threads})
    for workers in splits:
        group = f"{workers}x{threads // workers}"
        found += [_own(each, f"spark-{group}", kind="embed", workers=workers) for each in engines]
    found += [
        Contender(name="transport-bare", kind="bare", workers=threads),
        Contender(name="transport-e5spark", kind="constant", workers=threads),
        Contender(
            name="transport-tokenizer",
            kind="constant",
            workers=threads,
            options={"tokenizer": True},
        ),
    ]
    return found


def selected(
    everyone: Sequence[Contender], *, only: Sequence[str], skip: Sequence[str]
) -> list[Contender]:
    """Returns those whose name matches one of ``only`` (if any) and none of ``skip``."""
    return [
        each
        for each in everyone
        if (not only or any(fnmatch(each.name, pattern) for pattern in only))
        and not any(fnmatch(each.name, pattern) for pattern in skip)
    ]


def with_pythons(everyone: Sequence[Contender], pythons: Mapping[str, str]) -> list[Contender]:
    """Returns the contenders, each with the interpreter of the first pattern that it matches.

    What an interpreter of another environment lacks is found out when it runs.
    """
    found = []
    for each in everyone:
        python = next((path for name, path in pythons.items() if fnmatch(each.name, name)), None)
        found.append(each if python is None else replace(each, python=python, missing=None))
    return found


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
        missing=_absent("optimum.onnxruntime", "optimum-onnx[onnxruntime]"),
    )
    # OpenVINO computes in bf16 by itself where the CPU has it; both are asked for by name.
    for precision, hint in (("fp32", "f32"), ("bf16", "bf16"))[: 1 + native]:
        yield Contender(
            name="st-openvino" if precision == "fp32" else f"st-openvino-{precision}",
            kind=kind,
            precision=precision,
            options={
                "backend": "openvino",
                "model_kwargs": {"ov_config": {"INFERENCE_PRECISION_HINT": hint}},
            },
            missing=_absent("optimum.intel", "optimum-intel[openvino]"),
        )


def _st_torch(precision: str, dtype: str, device: str) -> Contender:
    return Contender(
        name=f"st-torch-{precision}",
        kind="sentence-transformers",
        precision=precision,
        options={"device": device, "model_kwargs": {"dtype": dtype}},
    )


def _engines(native: bool, device: str, prepared: Mapping[str, str]) -> Iterator[Contender]:
    """Each engine and precision, named after both; who runs it is filled in later."""
    choosable = "engine" in ModelOptions.__annotations__
    engines = ["torch", "openvino"] if choosable and device == "cpu" else ["torch"]
    precisions: list[str] = [each for each in PRECISIONS if each != "auto"]
    for engine in engines:
        for precision in precisions:
            name = f"{engine}-{precision}"
            missing = _absent("openvino", "openvino") if engine == "openvino" else None
            if precision in ("bf16", "fp16") and not native:
                missing = f"the CPU has no {precision} instructions"
            if precision == "int8" and name not in prepared:
                missing = f"it needs a prepared model: --prepared {name}=DIR"
            options: dict[str, Any] = {"precision": precision, "device": device}
            yield Contender(
                name=name,
                kind="encoder",
                precision=precision,
                options=options | ({"engine": engine} if choosable else {}),
                model=prepared.get(name),
                missing=missing,
            )


def _own(engine: Contender, group: str, *, kind: Kind, workers: int) -> Contender:
    return Contender(
        name=f"{group}-{engine.name}",
        kind=kind,
        workers=workers,
        precision=engine.precision,
        options=engine.options,
        model=engine.model,
        missing=engine.missing,
    )


def _absent(module: str, package: str) -> str | None:
    """Why a contender is left out, if its module is not installed."""
    try:
        found = importlib.util.find_spec(module) is not None
    except ImportError:  # not even the package around it
        found = False
    return None if found else f"{package} is not installed"
