"""The encoders of a worker process: each checkpoint is loaded once and kept for later tasks.

``e5spark.encoder`` is imported inside functions that only a worker calls, so that a driver loads
no tokenizer.
"""

import errno
import gc
import os
import re
import sys
import threading
import time
import zipimport
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyspark
from pyspark import TaskContext

from e5spark.errors import ConflictError, OptionError, missing_package
from e5spark.limits import memory_ceilings
from e5spark.model import prompts
from e5spark.model.checkpoint import Files
from e5spark.model.fingerprint import EngineKey
from e5spark.model.footprint import Footprint, check_fits, footprint, shortage, spare
from e5spark.model.resolve import Plan, resolve_planned
from e5spark.model.spec import ModelSpec
from e5spark.spark.archive import localized
from e5spark.spark.device import decide_device
from e5spark.spark.trace import trace

if TYPE_CHECKING:
    from e5spark.encoder import Encoder, LoadedModel
    from e5spark.encoder.isolated import IsolatedEncoder

# Two, so that a job that alternates between two checkpoints loads each of them once. The large
# shape takes 2.2 GB.
_MAX_LOADED = 2
# What engines, libraries and the child process say when there is too little memory.
_LACK_OF_MEMORY = re.compile(
    r"bad_alloc|cannot allocate|out of memory|failed to map|ended its process", re.IGNORECASE
)

_loaded: "OrderedDict[EngineKey, LoadedModel]" = OrderedDict()
# At most one, with the plan and the placement that it is for. Its process has a copy of the model,
# so a worker has either this one or those above.
_isolated: "list[tuple[Plan, Placement, IsolatedEncoder]]" = []
# The footprints of the models that run on the CPU, for the size of sort windows.
_footprints: dict[EngineKey, Footprint] = {}
_lock = threading.Lock()


def encoder_for(plan: Plan) -> "Encoder":
    """Returns this worker's encoder for a plan; its checkpoint is loaded once per engine key.

    It lives as long as the worker process: Spark keeps idle workers for a minute
    (``spark.python.worker.reuse``) and starts new ones when the session's environment changes.

    Raises:
        ModelError: If the checkpoint is absent, incomplete, or differs from the driver's.
        ConflictError: If the engine computes in another precision than the run's on this machine.
        OptionError: If this worker lacks a Python package, or memory for the model.
    """
    try:
        return _encoder(plan)
    except ModuleNotFoundError as error:
        option_error = missing_package(f"ModuleNotFoundError: {error}")
        if option_error is None:
            raise
        raise option_error from error


def isolated_encoder_for(plan: Plan) -> "IsolatedEncoder":
    """Returns this worker's encoder in a process of its own, which is kept for later tasks.

    Raises:
        E5SparkError: As ``encoder_for`` does, or if the model ends every process that loads it.
    """
    from e5spark.encoder.child import Assignment
    from e5spark.encoder.isolated import IsolatedEncoder

    placement = placement_of(plan)
    with _lock:
        if _isolated and _isolated[0][:2] == (plan, placement):
            encoder = _isolated[0][2]
        else:
            _close_isolated()
            _evict(0)
            assignment = Assignment(
                files=_files(plan, placement),
                recipe=plan.recipe,
                spec=placement.spec,
                threads=placement.threads,
                probe=prompts.prefix(plan.recipe.prompts, "passage", None),
            )
            encoder = IsolatedEncoder(assignment)
            _isolated.append((plan, placement, encoder))
        started = time.perf_counter()
        if not encoder.is_running:
            with _memory_explained(plan, placement.spec):
                engine = encoder.start()
            check_precision(engine.engine, engine.precision, placement.spec.precision)
            _trace_load(placement.spec, engine.engine, engine.precision, started)
        return encoder


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A spec on this machine: its directories, its device and the number of threads."""

    spec: ModelSpec
    threads: int | None


def placement_of(plan: Plan) -> Placement:
    """Returns where and how this worker runs a plan's model.

    Raises:
        ModelError: If Spark has not unpacked the model's archive on this machine.
    """
    context = TaskContext.get()
    threads = context.cpus() if context is not None else None
    spec = replace(localized(plan.spec), device=decide_device(plan.spec.device))
    return Placement(spec=spec, threads=threads)


def _encoder(plan: Plan) -> "Encoder":
    from e5spark.encoder import Encoder

    forget_zips()
    placement = placement_of(plan)
    spec = placement.spec
    key = _engine_key(plan, spec)
    with _lock:
        _close_isolated()
        if key not in _loaded:
            _evict(_MAX_LOADED - 1)
            started = time.perf_counter()
            loaded = _load(plan, placement)
            # Spark's daemon collects garbage after each task, which takes 0.35 s with the objects
            # of torch and transformers; the collector skips frozen objects.
            gc.freeze()
            _loaded[key] = loaded
            _trace_load(spec, loaded.engine.name, loaded.engine.precision, started)
        _loaded.move_to_end(key)
        return Encoder(_loaded[key], plan.recipe, spec)


def spare_memory(plan: Plan, *, isolated: bool = False) -> int | None:
    """Returns the bytes that this worker's limits leave for texts beside a plan's loaded model.

    None if nothing is known: on a GPU, or on a system that shows no limits.

    Args:
        plan: The model, which is loaded.
        isolated: Whether it is loaded in the child process.
    """
    needs = _footprints.get(_engine_key(plan, placement_of(plan).spec))
    return None if needs is None else spare(needs, memory_ceilings(), in_child=isolated)


def _engine_key(plan: Plan, spec: ModelSpec) -> EngineKey:
    return EngineKey(
        weights=plan.weights.weights if plan.weights else f"{spec.model}@{spec.revision}",
        tokenizer=plan.weights.tokenizer if plan.weights else str(spec.tokenizer),
        engine=spec.engine,
        precision=spec.precision,
        device=spec.device,
    )


def _files(plan: Plan, placement: Placement) -> Files:
    """The files of a plan's model, whose footprint fits this worker.

    Checked before the engine is imported: torch alone may take more address space than there is.
    """
    from e5spark.encoder.loading import decide_engine

    spec = placement.spec
    files = resolve_planned(plan, spec).files
    if spec.device == "cpu":
        engine = decide_engine(files, engine=spec.engine, device=spec.device)
        needs = footprint(
            files, engine=engine, precision=spec.precision, threads=placement.threads or 1
        )
        check_fits(spec.checkpoint or spec.model, needs, memory_ceilings())
        _footprints[_engine_key(plan, spec)] = needs
    return files


@contextmanager
def _memory_explained(plan: Plan, spec: ModelSpec) -> Iterator[None]:
    """Names the limit that is below what a model usually takes, if the model cannot be loaded.

    What fails then is a library that cannot be mapped, an allocation, or a process.
    """
    try:
        yield
    except Exception as error:
        if not _lacks_memory(error):
            raise
        needs = _footprints.get(_engine_key(plan, spec))
        short = needs and shortage(spec.checkpoint or spec.model, needs, memory_ceilings())
        if not short:
            raise
        raise OptionError(f"{short} The cause: {error}") from error


def _lacks_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return _LACK_OF_MEMORY.search(str(error)) is not None


def _trace_load(spec: ModelSpec, engine: str, precision: str, started: float) -> None:
    seconds = time.perf_counter() - started
    trace("load", model=spec.model, engine=engine, precision=precision, seconds=seconds)


def _close_isolated() -> None:
    while _isolated:
        _isolated.pop()[2].close()


def _evict(kept: int) -> None:
    """Frees the least recently used checkpoints but for so many, so that three are never there."""
    if len(_loaded) <= kept:
        return
    while len(_loaded) > kept:
        _loaded.popitem(last=False)
    gc.unfreeze()  # models refer to themselves, and frozen cycles are never freed
    gc.collect()


def _load(plan: Plan, placement: Placement) -> "LoadedModel":
    from e5spark.encoder import load

    spec, threads = placement.spec, placement.threads
    files = _files(plan, placement)
    # Before the tokenizer starts its threads: as many as the task has cpus.
    os.environ["RAYON_NUM_THREADS"] = str(threads or 1)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    with _memory_explained(plan, spec):
        loaded = load(
            files,
            engine=spec.engine,
            precision=spec.precision,
            device=spec.device,
            threads=threads,
        )
    check_precision(loaded.engine.name, loaded.engine.precision, spec.precision)
    return loaded


def check_precision(engine: str, actual: str, planned: str) -> None:
    """Raises ``ConflictError`` if an engine computes in another precision than the plan's here."""
    if actual != planned:
        raise ConflictError(
            f"The {engine} engine computes in {actual} on this executor's CPU, but the run's "
            f"precision is {planned}: the vectors would not be comparable. Set precision='fp32', "
            f"or use machines that support {planned}."
        )


def forget_zips() -> None:
    """Removes Spark's own zip files, which share one directory, from Python's import cache.

    Before every task Spark makes Python invalidate all zip files that it has imported from, once
    for each package in them. Before Python 3.13 that reads their directories at once
    (https://github.com/python/cpython/issues/103200), which takes 0.2 s of each task. Spark's zip
    files never change, and an import that needs one opens it again.
    """
    spark = Path(pyspark.__file__).parents[1]
    for path, finder in list(sys.path_importer_cache.items()):
        if isinstance(finder, zipimport.zipimporter):
            archive = Path(finder.archive)
            if archive.suffix == ".jar" or archive.parent == spark.parent:
                del sys.path_importer_cache[path]
