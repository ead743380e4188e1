"""The encoders of a worker process: each checkpoint is loaded once and kept for later tasks.

``e5spark.encoder`` is imported inside functions that only a worker calls, so that a driver loads
no tokenizer.
"""

import gc
import os
import sys
import threading
import time
import zipimport
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyspark
from pyspark import TaskContext

from e5spark.errors import ConflictError, missing_package
from e5spark.model.fingerprint import EngineKey
from e5spark.model.resolve import Plan, resolve_planned
from e5spark.model.spec import ModelSpec
from e5spark.spark.archive import localized
from e5spark.spark.device import decide_device
from e5spark.spark.trace import trace

if TYPE_CHECKING:
    from e5spark.encoder import Encoder, LoadedModel

# Two, so that a job that alternates between two checkpoints loads each of them once. The large
# shape takes 2.2 GB.
_MAX_LOADED = 2

_loaded: "OrderedDict[EngineKey, LoadedModel]" = OrderedDict()
_lock = threading.Lock()


def encoder_for(plan: Plan) -> "Encoder":
    """Returns this worker's encoder for a plan; its checkpoint is loaded once per engine key.

    It lives as long as the worker process: Spark keeps idle workers for a minute
    (``spark.python.worker.reuse``) and starts new ones when the session's environment changes.

    Raises:
        ModelError: If the checkpoint is absent, incomplete, or differs from the driver's.
        ConflictError: If the engine computes in another precision than the run's on this machine.
        OptionError: If this worker lacks a Python package.
    """
    try:
        return _encoder(plan)
    except ModuleNotFoundError as error:
        option_error = missing_package(f"ModuleNotFoundError: {error}")
        if option_error is None:
            raise
        raise option_error from error


def _encoder(plan: Plan) -> "Encoder":
    from e5spark.encoder import Encoder

    forget_zips()
    context = TaskContext.get()
    threads = context.cpus() if context is not None else None
    spec = replace(localized(plan.spec), device=decide_device(plan.spec.device))
    key = EngineKey(
        weights=plan.weights.weights if plan.weights else f"{spec.model}@{spec.revision}",
        tokenizer=plan.weights.tokenizer if plan.weights else str(spec.tokenizer),
        engine=spec.engine,
        precision=spec.precision,
        device=spec.device,
    )
    with _lock:
        if key not in _loaded:
            _evict_oldest()
            started = time.perf_counter()
            loaded = _load(plan, spec, threads)
            # Spark's daemon collects garbage after each task, which takes 0.35 s with the objects
            # of torch and transformers; the collector skips frozen objects.
            gc.freeze()
            _loaded[key] = loaded
            trace(
                "load",
                model=spec.model,
                engine=loaded.engine.name,
                precision=loaded.engine.precision,
                seconds=time.perf_counter() - started,
            )
        _loaded.move_to_end(key)
        return Encoder(_loaded[key], plan.recipe, spec)


def _evict_oldest() -> None:
    """Frees the least recently used checkpoint, so that three are never in memory."""
    if len(_loaded) < _MAX_LOADED:
        return
    while len(_loaded) >= _MAX_LOADED:
        _loaded.popitem(last=False)
    gc.unfreeze()  # models refer to themselves, and frozen cycles are never freed
    gc.collect()


def _load(plan: Plan, spec: ModelSpec, threads: int | None) -> "LoadedModel":
    from e5spark.encoder import load

    # Before the tokenizer starts its threads: as many as the task has cpus.
    os.environ["RAYON_NUM_THREADS"] = str(threads or 1)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    loaded = load(
        resolve_planned(plan, spec).files,
        engine=spec.engine,
        precision=spec.precision,
        device=spec.device,
        threads=threads,
    )
    if loaded.engine.precision != spec.precision:
        raise ConflictError(
            f"The {loaded.engine.name} engine computes in {loaded.engine.precision} on this "
            f"executor's CPU, but the run's precision is {spec.precision}: the vectors would not "
            "be comparable. Set precision='fp32', or use machines that support "
            f"{spec.precision}."
        )
    return loaded


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
