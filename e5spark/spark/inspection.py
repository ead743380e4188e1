"""What e5spark finds on the machine of a worker, before a run does: everything but loading a model.

It takes the steps of ``e5spark.spark.encoder_cache``, by the same functions, and goes on after one
that fails.
"""

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from e5spark.errors import E5SparkError, missing_package
from e5spark.limits import memory_ceilings

if TYPE_CHECKING:
    from e5spark.model.checkpoint import Files
    from e5spark.model.resolve import Plan
    from e5spark.spark.encoder_cache import Placement


def inspect(pickled_plan: bytes | None) -> dict[str, Any]:
    """Returns what a plan's model meets on this machine, as plain data.

    Args:
        pickled_plan: The model as the driver resolved it; None leaves the model out.

    Returns:
        ``problems``, each with the ``step`` that found it, and with a plan ``device``, ``threads``,
        ``model``, ``engine``, ``precision``, ``needs_bytes`` and ``spare_bytes``, as far as they
        can be known.
    """
    steps = _Steps()
    steps.run("packages", _import_worker)
    if pickled_plan is not None:
        _inspect_model(steps, pickled_plan)
    return {**steps.facts, "problems": steps.problems}


@dataclass(frozen=True)
class _Steps:
    """Facts and problems, from steps that each may fail."""

    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[dict[str, str]] = field(default_factory=list)

    def run(self, step: str, action: Callable[[], None]) -> bool:
        """Takes a step; returns whether it was taken to its end."""
        count = len(self.problems)
        with self.recorded(step):
            action()
        return len(self.problems) == count

    @contextmanager
    def recorded(self, step: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            known = error if isinstance(error, E5SparkError) else None
            if isinstance(error, ModuleNotFoundError):
                known = missing_package(f"ModuleNotFoundError: {error}")
            message = str(known) if known else f"{type(error).__name__}: {error}"
            problem = {"step": step, "message": " ".join(message.split())}
            if problem["message"] not in [other["message"] for other in self.problems]:
                self.problems.append(problem)


def _import_worker() -> None:
    import e5spark.encoder
    import e5spark.spark.worker  # noqa: F401


def _inspect_model(steps: _Steps, pickled_plan: bytes) -> None:
    placed: list[tuple[Plan, Placement]] = []
    located: list[Files] = []

    def place() -> None:
        from e5spark.spark.encoder_cache import placement_of

        plan = pickle.loads(pickled_plan)  # the driver's own bytes, as all that a task gets
        placement = placement_of(plan)
        steps.facts["device"] = placement.spec.device
        steps.facts["threads"] = placement.threads
        placed.append((plan, placement))

    def locate_files() -> None:
        from e5spark.model.checkpoint import locate

        located.append(locate(placed[0][1].spec))

    def compare() -> None:
        from e5spark.model.checkpoint import hash_files
        from e5spark.model.resolve import resolve_planned

        hashes = hash_files(located[0])
        steps.facts["model"] = {
            "path": str(located[0].model),
            "weights": hashes.weights,
            "tokenizer": hashes.tokenizer,
        }
        resolve_planned(placed[0][0], placed[0][1].spec)

    if not steps.run("placement", place) or not steps.run("absent", locate_files):
        return
    steps.run("model", compare)
    _inspect_engine(steps, located[0], placed[0][1])


def _inspect_engine(steps: _Steps, files: "Files", placement: "Placement") -> None:
    spec = placement.spec

    def choose() -> None:
        from e5spark.encoder.loading import decide_engine

        steps.facts["engine"] = decide_engine(files, engine=spec.engine, device=spec.device)

    def fit() -> None:
        from e5spark.model.footprint import check_fits, footprint, shortage, spare

        needs = footprint(
            files,
            engine=steps.facts["engine"],
            precision=spec.precision,
            threads=placement.threads or 1,
        )
        ceilings, name = memory_ceilings(), spec.checkpoint or spec.model
        steps.facts["needs_bytes"] = dict(needs.usual)
        steps.facts["spare_bytes"] = spare(needs, ceilings)
        check_fits(name, needs, ceilings)
        steps.facts["shortage"] = shortage(name, needs, ceilings)

    def check() -> None:
        from e5spark.encoder.loading import check_loadable

        steps.facts["precision"] = check_loadable(
            files,
            engine=steps.facts["engine"],
            precision=spec.precision,
            device=spec.device,
        )

    def compare() -> None:
        from e5spark.spark.encoder_cache import check_precision

        check_precision(steps.facts["engine"], steps.facts["precision"], spec.precision)

    if not steps.run("engine", choose):
        return
    # Before an engine is imported: torch alone may take more address space than there is.
    fits = steps.run("memory", fit) if spec.device == "cpu" else True
    if fits and steps.run("engine", check):
        steps.run("precision", compare)
