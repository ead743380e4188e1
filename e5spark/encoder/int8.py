"""Prepared models in int8: quantised with NNCF, and kept only if they are accurate and faster.

E5's activations have outliers that ruin some schemes; the checkpoint and the texts decide which
schemes. So each scheme is tried, fastest first, on the user's own texts.
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
from e5spark.encoder.engine import LoadedModel, Vectors
from e5spark.encoder.engines.openvino import OpenVINOEngine
from e5spark.encoder.tokenizer import Tokenizer
from e5spark.errors import GateError, ModelError
from e5spark.model import prepared
from e5spark.model.checkpoint import known_checkpoint
from e5spark.model.prepared import Manifest
from e5spark.model.registry import Recipe
from e5spark.model.spec import ModelSpec

log = logging.getLogger(__name__)

MEAN_COSINE = 0.99  # to the fp32 vectors; the promise of int8
_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A way to quantise a model's weights and activations.

    Attributes:
        name: The name in reports.
        static: Whether activations have fixed, calibrated ranges; otherwise only weights are stored
            in int8, and each activation is quantised by its own range at run time.
        float_patterns: Patterns of the names of operations that stay in floating point.
        settings: Settings of OpenVINO for a model of this scheme.
    """

    name: str
    static: bool
    float_patterns: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)


SCHEMES = (
    Scheme(name="static", static=True),
    # The input of a feed-forward block's second half is the output of GELU, with the outliers.
    Scheme(
        name="static, feed-forward outputs in floating point",
        static=True,
        float_patterns=(r".*\.output\.dense.*MatMul.*",),
    ),
    Scheme(
        name="weights, activations at run time",
        static=False,
        settings={"DYNAMIC_QUANTIZATION_GROUP_SIZE": "64"},
    ),
)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Texts of the user's corpus, each with the prefix of its role.

    Attributes:
        texts: Texts in any order.
        prefixes: The prefix of each text.
    """

    texts: Sequence[str]
    prefixes: Sequence[str]

    def halves(self) -> "tuple[Sample, Sample]":
        """Returns the half of the texts to calibrate with and the half to evaluate with."""
        return (
            Sample(texts=self.texts[::2], prefixes=self.prefixes[::2]),
            Sample(texts=self.texts[1::2], prefixes=self.prefixes[1::2]),
        )


def quantize(
    source: Path, to: Path, sample: Sample, *, recipe: Recipe, spec: ModelSpec, overflow_safe: bool
) -> dict[str, float | str]:
    """Makes a prepared model of kind ``int8`` from one of kind ``float``.

    Args:
        source: The directory of the prepared model of kind ``float``.
        to: A new directory.
        sample: Texts; one half is for calibration, the other for evaluation.
        recipe: How vectors are computed.
        spec: The options that texts are encoded with: sort window and token budget.
        overflow_safe: Whether weights use only half their range, so that sums do not overflow on
            CPUs without VNNI; this costs some accuracy.

    Returns:
        The scheme, its mean and worst cosine to fp32 over the evaluation half, the number of texts
        in that half, and its speed-up over fp32 on this machine.

    Raises:
        GateError: If no scheme is both accurate enough and faster; nothing is left behind.
    """
    calibration_half, evaluation_half = sample.halves()
    float_encoder = _encoder(source, recipe, spec)
    inputs = _inputs(float_encoder, calibration_half)
    rejected = []
    with TemporaryDirectory(prefix="e5spark-int8-") as scratch:
        for number, scheme in enumerate(SCHEMES):
            candidate = Path(scratch) / str(number)
            shutil.copytree(source, candidate)
            model = _quantized_model(scheme, source, inputs, overflow_safe)
            _write(scheme, candidate, model, overflow_safe)
            quality = _quality(float_encoder, candidate, evaluation_half, recipe, spec)
            quality["scheme"] = scheme.name
            log.info("int8, %s.", _sentence(quality))
            if float(quality["mean_cosine"]) >= MEAN_COSINE and float(quality["speedup"]) > 1:
                published = known_checkpoint(spec)
                name = published.name if published else None
                prepared.build(to, functools.partial(_finish, candidate, quality, name))
                return quality
            rejected.append(quality)
    raise GateError(
        f"No int8 scheme has a mean cosine to fp32 of {MEAN_COSINE} and is faster than fp32, on "
        f"this machine and these texts: {'; '.join(map(_sentence, rejected))}. Use fp32."
    )


def _manifest(directory: Path) -> Manifest:
    manifest = prepared.read(directory)
    if manifest is None:
        raise ModelError(f"{directory} is not a prepared model; make one with e5spark prepare.")
    return manifest


def _encoder(directory: Path, recipe: Recipe, spec: ModelSpec) -> Encoder:
    manifest = _manifest(directory)
    precision = "int8" if manifest.kind == "int8" else "fp32"
    engine = OpenVINOEngine.load(directory, manifest, precision=precision, threads=None)
    tokenizer = Tokenizer.read(directory / prepared.TOKENIZER, pad_id=manifest.pad_id)
    return Encoder(LoadedModel(tokenizer=tokenizer, engine=engine), recipe, spec)


def _inputs(encoder: Encoder, sample: Sample) -> list[dict[str, Any]]:
    """The inputs of the graph for the sample: the same arrays as in a run."""
    engine = encoder.engine
    assert isinstance(engine, OpenVINOEngine)
    tokens = encoder.tokenize(sample.texts, sample.prefixes).tokens
    batches = micro_batches(tokens.lengths, engine.token_budget)
    return [engine.inputs(tokens.batch(rows)) for rows in batches]


def _quantized_model(
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
        ignored_scope=nncf.IgnoredScope(patterns=list(scheme.float_patterns), validate=False),
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
    candidate: Path, quality: Mapping[str, float | str], checkpoint: str | None, to: Path
) -> None:
    shutil.copytree(candidate, to, dirs_exist_ok=True)
    (to / prepared.MANIFEST).unlink()
    prepared.write(to, replace(_manifest(candidate), quality=quality, checkpoint=checkpoint))


def _quality(
    float_encoder: Encoder, candidate: Path, sample: Sample, recipe: Recipe, spec: ModelSpec
) -> dict[str, float | str]:
    quantised = _encoder(candidate, recipe, spec)
    seconds: dict[str, list[float]] = {"fp32": [], "int8": []}
    vectors: dict[str, Vectors] = {}
    for _ in range(_ROUNDS):  # in turn, so that other load on the machine slows both down
        for name, encoder in (("fp32", float_encoder), ("int8", quantised)):
            started = time.perf_counter()
            encoding = encoder.encode_rows(sample.texts, sample.prefixes)
            seconds[name].append(time.perf_counter() - started)
            vectors[name] = normalized(encoding.vectors)
    cosines = (vectors["fp32"] * vectors["int8"]).sum(axis=1)
    return {
        "mean_cosine": round(float(cosines.mean()), 6),
        "worst_cosine": round(float(cosines.min()), 6),
        "texts": len(sample.texts),
        "speedup": _speedup(seconds["fp32"], seconds["int8"]),
    }


def _speedup(before: Sequence[float], after: Sequence[float]) -> float:
    """The ratio of the fastest rounds, which other load on the machine disturbed least."""
    return round(min(before) / min(after), 2)


def _sentence(quality: Mapping[str, float | str]) -> str:
    return (
        f"{quality['scheme']}: mean cosine {quality['mean_cosine']}, worst "
        f"{quality['worst_cosine']}, {quality['speedup']} times as fast"
    )
