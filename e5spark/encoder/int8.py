"""A prepared model in int8: quantised with NNCF, and kept only if it is right and faster.

E5's activations have outliers that some schemes do not survive, and which ones depends on the
checkpoint and the texts. So they are tried, fastest first, on texts of the user's own.
"""

import functools
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nncf
import openvino
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

from e5spark.encoder.batching import micro_batches
from e5spark.encoder.encoder import Encoder, normalized
from e5spark.encoder.engine import Loaded, Vectors
from e5spark.encoder.engines.openvino import OpenVINOEngine
from e5spark.encoder.tokenizer import Tokenizer
from e5spark.errors import GateError, ModelError
from e5spark.model import prepared
from e5spark.model.checkpoint import known_checkpoint
from e5spark.model.prepared import Manifest
from e5spark.model.registry import Recipe
from e5spark.model.spec import ModelSpec

log = logging.getLogger(__name__)

MEAN_COSINE = 0.99  # design.md's promise of int8
_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A way to quantise.

    Attributes:
        name: For reports.
        static: Whether activations have fixed ranges too; else weights alone are int8, and
            activations are quantised as they come.
        kept: Patterns of operations that stay in floating point.
        settings: What the engine needs to be told.
    """

    name: str
    static: bool
    kept: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)


SCHEMES = (
    Scheme(name="static", static=True),
    # The second half of a feed-forward block takes in what GELU lets through: the outliers.
    Scheme(
        name="static, feed-forward outputs in floating point",
        static=True,
        kept=(r".*\.output\.dense.*MatMul.*",),
    ),
    Scheme(
        name="weights, activations as they come",
        static=False,
        settings={"DYNAMIC_QUANTIZATION_GROUP_SIZE": "64"},
    ),
)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Texts of the user's corpus, each with the prefix of its role.

    Attributes:
        texts: In no particular order.
        prefixes: One for each.
    """

    texts: Sequence[str]
    prefixes: Sequence[str]

    def halves(self) -> "tuple[Sample, Sample]":
        """Returns the texts to calibrate with, and as many others to judge by."""
        return (
            Sample(texts=self.texts[::2], prefixes=self.prefixes[::2]),
            Sample(texts=self.texts[1::2], prefixes=self.prefixes[1::2]),
        )


def quantize(
    source: Path, to: Path, sample: Sample, *, recipe: Recipe, spec: ModelSpec, overflow_safe: bool
) -> dict[str, float | str]:
    """Makes a prepared model of kind ``int8`` of one of kind ``float``.

    Args:
        source: The prepared model.
        to: A new directory.
        sample: Half of it calibrates, the other half judges.
        recipe: How vectors are made.
        spec: For the windows and budgets that texts are encoded with.
        overflow_safe: Whether weights keep to half their range, so that sums do not overflow on
            CPUs without VNNI; it costs some accuracy.

    Returns:
        The scheme, mean and worst cosine to fp32 on the judging half, how many texts that is, and
        how many times as fast as fp32 it is here.

    Raises:
        GateError: If no scheme is both good enough and faster; nothing is left behind.
    """
    calibrating, judging = sample.halves()
    precise = _encoder(source, recipe, spec)
    inputs = _inputs(precise, calibrating)
    tried = []
    with TemporaryDirectory(prefix="e5spark-int8-") as scratch:
        for number, scheme in enumerate(SCHEMES):
            made = Path(scratch) / str(number)
            shutil.copytree(source, made)
            _write(scheme, made, _quantized(scheme, source, inputs, overflow_safe), overflow_safe)
            quality = _compared(precise, made, judging, recipe, spec)
            quality["scheme"] = scheme.name
            log.info("int8, %s", _said(quality))
            if float(quality["mean_cosine"]) >= MEAN_COSINE and float(quality["speedup"]) > 1:
                known = known_checkpoint(spec)
                finish = functools.partial(_finish, made, quality, known.name if known else None)
                prepared.build(to, finish)
                return quality
            tried.append(quality)
    raise GateError(
        f"No int8 scheme has a mean cosine to fp32 of {MEAN_COSINE} and is faster than fp32, on "
        f"this machine and these texts: {'; '.join(map(_said, tried))}. Use fp32."
    )


def _manifest(directory: Path) -> Manifest:
    manifest = prepared.read(directory)
    if manifest is None:
        raise ModelError(f"{directory} is no prepared model.")
    return manifest


def _encoder(directory: Path, recipe: Recipe, spec: ModelSpec) -> Encoder:
    manifest = _manifest(directory)
    precision = "int8" if manifest.kind == "int8" else "fp32"
    engine = OpenVINOEngine.load(directory, manifest, precision=precision, threads=None)
    tokenizer = Tokenizer.read(directory / prepared.TOKENIZER, pad_id=manifest.pad_id)
    return Encoder(Loaded(tokenizer=tokenizer, engine=engine), recipe, spec)


def _inputs(encoder: Encoder, sample: Sample) -> list[dict[str, Any]]:
    """What the graph is given for the sample: the same arrays as when it runs."""
    engine = encoder.engine
    assert isinstance(engine, OpenVINOEngine)
    tokens = encoder.tokenize(sample.texts, sample.prefixes).tokens
    batches = micro_batches(tokens.lengths, engine.token_budget)
    return [engine.inputs(tokens.batch(rows)) for rows in batches]


def _quantized(
    scheme: Scheme, source: Path, inputs: list[dict[str, Any]], overflow_safe: bool
) -> "openvino.Model":
    model = openvino.Core().read_model(source / prepared.MODEL)
    if not scheme.static:
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    return nncf.quantize(
        model,
        nncf.Dataset(inputs),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(inputs),
        ignored_scope=nncf.IgnoredScope(patterns=list(scheme.kept), validate=False),
        advanced_parameters=AdvancedQuantizationParameters(
            overflow_fix=OverflowFix.ENABLE if overflow_safe else OverflowFix.DISABLE
        ),
    )


def _write(scheme: Scheme, directory: Path, model: "openvino.Model", overflow_safe: bool) -> None:
    openvino.save_model(model, directory / prepared.MODEL, compress_to_fp16=False)
    manifest = replace(
        _manifest(directory),
        kind="int8",
        settings=scheme.settings,
        needs_vnni=scheme.static and not overflow_safe,
    )
    (directory / prepared.MANIFEST).unlink()
    prepared.write(directory, manifest)


def _finish(
    made: Path, quality: Mapping[str, float | str], checkpoint: str | None, to: Path
) -> None:
    shutil.copytree(made, to, dirs_exist_ok=True)
    (to / prepared.MANIFEST).unlink()
    prepared.write(to, replace(_manifest(made), quality=quality, checkpoint=checkpoint))


def _compared(
    precise: Encoder, made: Path, sample: Sample, recipe: Recipe, spec: ModelSpec
) -> dict[str, float | str]:
    quantised = _encoder(made, recipe, spec)
    seconds: dict[str, list[float]] = {"fp32": [], "int8": []}
    vectors: dict[str, Vectors] = {}
    for _ in range(_ROUNDS):  # interleaved, so that whatever else the machine does slows down both
        for name, encoder in (("fp32", precise), ("int8", quantised)):
            started = time.perf_counter()
            found = encoder.encode_rows(sample.texts, sample.prefixes)
            seconds[name].append(time.perf_counter() - started)
            vectors[name] = normalized(found.vectors)
    cosines = (vectors["fp32"] * vectors["int8"]).sum(axis=1)
    return {
        "mean_cosine": round(float(cosines.mean()), 6),
        "worst_cosine": round(float(cosines.min()), 6),
        "texts": len(sample.texts),
        "speedup": _speedup(seconds["fp32"], seconds["int8"]),
    }


def _speedup(before: Sequence[float], after: Sequence[float]) -> float:
    """How many times as fast; the least of several rounds has the least of anybody else in it."""
    return round(min(before) / min(after), 2)


def _said(quality: Mapping[str, float | str]) -> str:
    return (
        f"{quality['scheme']}: mean cosine {quality['mean_cosine']}, worst "
        f"{quality['worst_cosine']}, {quality['speedup']} times as fast"
    )
