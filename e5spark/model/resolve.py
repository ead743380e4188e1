"""A run's model as it is resolved once, on the driver: what every worker must use unchanged."""

import hashlib
import json
from dataclasses import dataclass, replace

from e5spark.errors import ConflictError, ModelError
from e5spark.model.checkpoint import check_published, decide_precision, hash_files, locate, pin
from e5spark.model.fingerprint import Fingerprint, Weights
from e5spark.model.output_type import Calibration, load_calibration
from e5spark.model.recipe import resolve_recipe
from e5spark.model.registry import CHECKPOINTS, Recipe
from e5spark.model.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A model as the driver resolved it; a worker needs it, and must not decide it again.

    Attributes:
        spec: What the user asked for, with the commit that a hub name was resolved to and the
            precision that ``auto`` was.
        recipe: How vectors are made.
        weights: The content of the driver's copy, which the worker's must equal; None if the
            driver has none.
        calibration: The ranges of int8 and uint8 vectors.
    """

    spec: ModelSpec
    recipe: Recipe
    weights: Weights | None
    calibration: Calibration | None = None

    @property
    def fingerprint(self) -> Fingerprint:
        """Returns what makes the vectors of this plan comparable with others.

        Raises:
            ModelError: If the driver does not have the checkpoint's files.
        """
        if self.weights is None:
            raise ModelError(
                f"The driver has no files of {self.spec.model}, which a fingerprint is made of."
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


def make_plan(spec: ModelSpec, local: ModelSpec, *, required: bool = False) -> Plan:
    """Returns the model as this machine resolves it, from its own copy of the files.

    Args:
        spec: What the user asked for.
        local: The same, with the directories that ``archive:`` stands for on this machine.
        required: Whether the files must be here. Else a known checkpoint that is not is left to
            the executors, unless downloading is allowed.

    Raises:
        ModelError: If the checkpoint is unknown, absent or incomplete.
        OptionError: If an option contradicts it, or the calibration cannot be read.
        ConflictError: If the calibration belongs to other vectors.
    """
    elsewhere = spec.model in CHECKPOINTS and not spec.download and spec.calibration is None
    try:
        files = locate(local)
    except ModelError:
        if required or not elsewhere:
            raise
        decided = replace(spec, precision=decide_precision(spec))
        return Plan(spec=decided, recipe=resolve_recipe(spec), weights=None)
    check_published(local, files)
    plan = Plan(
        spec=replace(pin(spec, files), precision=decide_precision(local, files)),
        recipe=resolve_recipe(local, files.model),
        weights=hash_files(files),
    )
    return plan if spec.calibration is None else _calibrated(plan, spec.calibration)


def as_float32(plan: Plan) -> Plan:
    """Returns the plan of the same vectors as float32: those that ranges are computed of."""
    spec = replace(plan.spec, output_type="float32", calibration=None)
    return replace(plan, spec=spec, calibration=None)


def _calibrated(plan: Plan, path: str) -> Plan:
    calibration = load_calibration(path)
    needed = as_float32(plan).fingerprint.digest
    if calibration.fingerprint != needed:
        raise ConflictError(
            f"The calibration {path} was made of other vectors (fingerprint "
            f"{calibration.fingerprint[:12]}, this run's is {needed[:12]}): model, prompts, "
            "pooling, dim, limits and precision must be the same. Make it again."
        )
    return replace(plan, calibration=calibration)


def _digest(calibration: Calibration) -> str:
    ranges = json.dumps([calibration.lowest, calibration.highest])
    return hashlib.sha256(ranges.encode()).hexdigest()
