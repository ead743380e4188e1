"""A model resolved once, on the driver, and used unchanged by every worker."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from e5spark.errors import ConflictError, ModelError
from e5spark.model import prepared
from e5spark.model.architecture import read_config
from e5spark.model.checkpoint import (
    Files,
    check_published,
    decide_precision,
    earlier_hashes,
    hash_files,
    is_directory,
    known_checkpoint,
    locate,
    pin,
    weight_files,
)
from e5spark.model.fingerprint import Fingerprint, Weights
from e5spark.model.output_type import Calibration, load_calibration
from e5spark.model.recipe import resolve_recipe
from e5spark.model.registry import CHECKPOINTS, Recipe
from e5spark.model.spec import ModelSpec, Precision
from e5spark.model.vocabulary import check_prompts_fit, check_tokenizer
from e5spark.model.weights import check_weights


@dataclass(frozen=True, kw_only=True)
class ResolvedModel:
    """A model on this machine, checked and ready to load.

    Attributes:
        spec: The model as the user described it, with the commit that a hub name resolved to, the
            published checkpoint that was recognised, and the precision chosen for ``auto``.
        files: Where its files are.
        recipe: How its vectors are computed.
    """

    spec: ModelSpec
    files: Files
    recipe: Recipe

    @property
    def weights(self) -> Weights:
        """Returns the content hashes; about 3 s per GB the first time on a machine."""
        with _os_errors():
            return hash_files(self.files)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A model as the driver resolved it; a worker uses it and decides nothing again.

    Attributes:
        spec: The model as the user described it, with the commit that a hub name resolved to, the
            published checkpoint that was recognised, and the precision chosen for ``auto``.
        recipe: How its vectors are computed.
        weights: The content of the driver's copy, which the worker's must equal; None if the
            driver has no copy.
        calibration: The ranges of int8 and uint8 vectors.
    """

    spec: ModelSpec
    recipe: Recipe
    weights: Weights | None
    calibration: Calibration | None = None

    @property
    def fingerprint(self) -> Fingerprint:
        """Returns the fingerprint of this plan's vectors; only equal ones are comparable.

        Raises:
            ModelError: If the driver does not have the checkpoint's files.
        """
        if self.weights is None:
            raise ModelError(
                f"The driver has no files of {self.spec.model}, and a fingerprint needs their "
                "hashes. Provide the checkpoint on the driver too."
            )
        ranges = self.calibration
        return Fingerprint(
            weights=self.weights.weights,
            tokenizer=self.weights.tokenizer,
            recipe=self.recipe,
            precision=self.spec.precision,
            output_type=self.spec.output_type,
            calibration=None if ranges is None else _digest(ranges),
        )


@contextmanager
def _os_errors() -> Iterator[None]:
    """Says which file the operating system refuses."""
    try:
        yield
    except OSError as error:
        raise ModelError(
            f"{error.filename or 'A file of the model'} cannot be read or written: "
            f"{error.strerror or error}. Grant permission, free some space, or fetch the model "
            "again."
        ) from error


@_os_errors()
def resolve(spec: ModelSpec, *, auto: Precision = "fp32") -> ResolvedModel:
    """Returns the model's files on this machine, how its vectors are computed, and its precision.

    This is the only way from a spec to a model. Headers, shapes and vocabulary are checked here, so
    that a broken checkpoint is refused before any task runs; no engine is loaded.

    Args:
        spec: The model as the user described it.
        auto: What ``precision="auto"`` means for a model that is not an int8 model.

    Raises:
        ModelError: If the checkpoint is unknown, absent, incomplete, altered or damaged.
        OptionError: If an option contradicts it.
        TransientError: If the hub did not answer.
    """
    files = locate(spec)
    spec = _recognised(spec, files)
    check_published(spec, files)
    recipe = resolve_recipe(spec, files.model)
    _check_content(spec, files)
    check_prompts_fit(files.tokenizer, read_config(files.model), recipe)
    spec = replace(pin(spec, files), precision=decide_precision(spec, files, auto=auto))
    return ResolvedModel(spec=spec, files=files, recipe=recipe)


@_os_errors()
def resolve_files(spec: ModelSpec) -> tuple[ModelSpec, Files]:
    """Returns spec and directories of the model, for a caller that makes no vectors.

    See ``resolve``.

    Raises:
        ModelError: If the checkpoint is unknown, absent, incomplete, altered or damaged.
        TransientError: If the hub did not answer.
    """
    files = locate(spec)
    spec = _recognised(spec, files)
    check_published(spec, files)
    _check_content(spec, files)
    return spec, files


@_os_errors()
def resolve_planned(plan: Plan, local: ModelSpec) -> ResolvedModel:
    """Returns a plan's model from this executor's files, if they are what the driver checked.

    Args:
        plan: What the driver resolved.
        local: The plan's spec, with the device of this executor and the directories that
            ``archive:`` refers to on it.

    Raises:
        ModelError: If the checkpoint is absent from this executor, or differs from the plan's.
        TransientError: If the hub did not answer.
    """
    files = locate(local)
    check_published(local, files)
    if plan.weights is None:  # the driver had no copy to check
        _check_content(local, files)
    same = plan.weights is None or plan.weights in _identities(files)
    if not same or resolve_recipe(local, files.model) != plan.recipe:
        raise ModelError(
            f"The checkpoint in {files.model} on this executor is not the one that the driver "
            "planned with: their files differ. Put the same files on every machine, or ship them "
            "with spark-submit --archives model.tar.gz#model."
        )
    return ResolvedModel(spec=local, files=files, recipe=plan.recipe)


def make_plan(
    spec: ModelSpec, local: ModelSpec, *, required: bool = False, auto: Precision = "fp32"
) -> Plan:
    """Returns the plan of a model, resolved from this machine's own copy of the files.

    Args:
        spec: The model as the user described it.
        local: The same spec, with the directories that ``archive:`` refers to on this machine.
        required: Whether the files must be on this machine. If not, a published checkpoint that is
            absent is left to the executors, unless downloading is allowed.
        auto: What ``precision="auto"`` means for a model that is not an int8 model.

    Raises:
        ModelError: If the checkpoint is unknown, absent, incomplete, altered or damaged.
        OptionError: If an option contradicts it, or the calibration cannot be read.
        ConflictError: If the calibration belongs to other vectors.
        TransientError: If the hub did not answer.
    """
    on_executors = spec.model in CHECKPOINTS and not spec.download and spec.calibration is None
    if on_executors and not required:
        try:
            locate(local)
        except ModelError:
            spec = replace(spec, precision=decide_precision(spec, auto=auto))
            return Plan(spec=spec, recipe=resolve_recipe(spec), weights=None)
    model = resolve(local, auto=auto)
    plan = Plan(
        spec=replace(
            spec,
            checkpoint=model.spec.checkpoint,
            revision=model.spec.revision,
            precision=model.spec.precision,
        ),
        recipe=model.recipe,
        weights=model.weights,
    )
    return plan if spec.calibration is None else _calibrated(plan, spec.calibration, model.files)


def with_stored_identity(plan: Plan, local: ModelSpec, stored: Weights) -> Plan:
    """Returns the plan under the identity that a table's fingerprint has for the same weights.

    e5spark 0.1.0 identified weights by their files. A table keeps the identity that it was created
    with, so that its fingerprint stays the same.

    Args:
        plan: A plan of this machine's files.
        local: The plan's spec, with the directories that ``archive:`` refers to on this machine.
        stored: The identity in the table's fingerprint.

    Returns:
        The plan itself if the identity is not its files'.
    """
    if plan.weights is None or stored == plan.weights or stored not in _identities(locate(local)):
        return plan
    return replace(plan, weights=stored)


def as_float32(plan: Plan) -> Plan:
    """Returns the plan of the same vectors in float32, the ones that ranges are computed from."""
    spec = replace(plan.spec, output_type="float32", calibration=None)
    return replace(plan, spec=spec, calibration=None)


def _recognised(spec: ModelSpec, files: Files) -> ModelSpec:
    """The spec, with the published checkpoint that files without a recipe hold.

    A checkpoint is recognised by its weights alone, whatever the files are called.
    """
    has_recipe = (files.model / "modules.json").is_file() or prepared.read(files.model) is not None
    if spec.checkpoint is not None or not is_directory(spec.model) or has_recipe:
        return spec
    values = read_config(files.model).values
    for published in CHECKPOINTS.values():
        is_alike = all(values.get(key) == value for key, value in published.config.items())
        if published.content_sha256 is None or not is_alike:
            continue
        if hash_files(files).weights == published.content_sha256:
            return replace(spec, checkpoint=published.name)
    return spec


def _identities(files: Files) -> Iterator[Weights]:
    """The current identity of a checkpoint's weights, then the one of e5spark 0.1.0."""
    yield hash_files(files)
    yield earlier_hashes(files)


def _check_content(spec: ModelSpec, files: Files) -> None:
    if prepared.read(files.model) is not None:
        return  # its manifest has the hash of each file
    config = read_config(files.model)
    check_weights(files.model, weight_files(files.model), config)
    check_tokenizer(files.tokenizer, config, known_checkpoint(spec))


def _calibrated(plan: Plan, path: str, files: Files) -> Plan:
    calibration = load_calibration(path)
    expected = as_float32(plan).fingerprint.digest
    digests = (
        as_float32(replace(plan, weights=weights)).fingerprint.digest
        for weights in _identities(files)
    )
    if calibration.fingerprint not in digests:
        raise ConflictError(
            f"The calibration {path} was made from other vectors (fingerprint "
            f"{calibration.fingerprint[:12]}, this run's is {expected[:12]}): model, prompts, "
            "pooling, dim, limits and precision must be the same. Make it again with e5spark "
            "calibrate."
        )
    return replace(plan, calibration=calibration)


def _digest(calibration: Calibration) -> str:
    ranges = json.dumps([calibration.lowest, calibration.highest])
    return hashlib.sha256(ranges.encode()).hexdigest()
