"""The encoders of this worker process: each loaded once, whatever asks for it.

The encoder's package is imported inside the function that only a worker calls.
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

from e5spark.errors import ConflictError
from e5spark.model.fingerprint import EngineKey
from e5spark.model.resolve import Plan, resolve_planned
from e5spark.spark.archive import localized
from e5spark.spark.device import decide_device
from e5spark.spark.trace import trace

if TYPE_CHECKING:
    from e5spark.encoder import Encoder, Loaded

# Two, so that a job that alternates between two checkpoints loads each once; the large shape
# takes 2.2 GB.
_MOST_LOADED = 2

_loaded: "OrderedDict[EngineKey, Loaded]" = OrderedDict()
_lock = threading.Lock()


def encoder_of(plan: Plan) -> "Encoder":
    """Returns the encoder of this worker, loaded once for each engine key.

    It lives as long as the worker process does: Spark keeps idle workers for a minute
    (``spark.python.worker.reuse``) and starts new ones when the session's environment changes.
    """
    from e5spark.encoder import Encoder, load

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
            started = time.perf_counter()
            # Before the tokenizer starts its threads: as many as the task has cpus.
            os.environ["RAYON_NUM_THREADS"] = str(threads or 1)
            os.environ["TOKENIZERS_PARALLELISM"] = "true"
            loaded = load(
                resolve_planned(plan, spec).files,
                engine=key.engine,
                precision=key.precision,
                device=spec.device,
                threads=threads,
            )
            if loaded.engine.precision != key.precision:
                raise ConflictError(
                    f"The {loaded.engine.name} engine computes in {loaded.engine.precision} on "
                    f"this executor's CPU, and the run's precision is {key.precision}: its vectors "
                    "would not be of one kind. Give precision='fp32', or machines that have it."
                )
            # Spark's daemon collects garbage after each task, 0.35 s with torch's and transformers'
            # objects in sight; frozen ones are not looked at again.
            gc.freeze()
            _loaded[key] = loaded
            if len(_loaded) > _MOST_LOADED:
                _loaded.popitem(last=False)
            trace(
                "load",
                model=spec.model,
                engine=loaded.engine.name,
                precision=loaded.engine.precision,
                seconds=time.perf_counter() - started,
            )
        _loaded.move_to_end(key)
        return Encoder(_loaded[key], plan.recipe, spec)


def forget_zips() -> None:
    """Lets go of what Python knows of Spark's own zip files, which lie beside each other.

    Before every task Spark has Python look again at all zip files that it has imported from, once
    for each package in them, and before 3.13 that reads their directories at once
    (https://github.com/python/cpython/issues/103200): 0.2 s of each task. Spark's never change; an
    import that needs one opens it again.
    """
    spark = Path(pyspark.__file__).parents[1]
    for path, finder in list(sys.path_importer_cache.items()):
        if isinstance(finder, zipimport.zipimporter):
            archive = Path(finder.archive)
            if archive.suffix == ".jar" or archive.parent == spark.parent:
                del sys.path_importer_cache[path]
