"""What runs on executors: Arrow batches of texts in, Arrow batches of vectors out.

The driver imports this module for its types and ships its functions by name; the encoder is
imported inside the functions that only a worker calls.
"""

import functools
import gc
import json
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark import TaskContext

from e5spark import prompts, text
from e5spark.checkpoint import ARCHIVE, Files, check_published, hash_files, locate
from e5spark.errors import ModelError, OptionError
from e5spark.fingerprint import EngineKey
from e5spark.models import Recipe
from e5spark.plan import Plan
from e5spark.recipe import describe
from e5spark.spark import results
from e5spark.spark.ahead import ahead
from e5spark.spec import ModelSpec

if TYPE_CHECKING:
    from e5spark.encoder import Encoder, Loaded
    from e5spark.encoder.tokenized import Tokenized

# A window closes at this many bytes of text even if it has few rows: 10,000-row Arrow batches of
# long documents would otherwise be held, tokenised and sorted all at once.
_WINDOW_BYTES = 64 << 20
# Two, so that a job that alternates between two checkpoints loads each once; the large shape
# takes 2.2 GB.
_MOST_LOADED = 2


@dataclass(frozen=True, kw_only=True)
class Request:
    """What one UDF does to its arguments: ``texts`` text columns, then a role, an instruction.

    Attributes:
        plan: The model.
        texts: How many text columns come first.
        role: The role of every row; None if the next argument column holds it.
        instruction: The instruction of every row, if there is one.
        has_instructions: Whether the last argument column holds instructions.
    """

    plan: Plan
    texts: int
    role: str | None
    instruction: str | None = None
    has_instructions: bool = False


def run(request: Request, batches: Iterable[tuple[pa.Array, ...]]) -> Iterator[list[pa.Array]]:
    """Yields, for each window of batches, one result array for each text column.

    The window is wider than the transport batch: rows of several Arrow batches are sorted by
    length together, so output batches are longer than input batches. Spark asks only that the
    rows come out in the order they went in. While the engine runs one window, a thread reads and
    tokenises the next: tokenizers let go of Python's lock, and engines do.
    """
    encoder = _encoder(request.plan)
    windows = _windows(batches, request.plan.spec.window)
    for texts in ahead(windows, functools.partial(_tokenized, request, encoder)):
        yield _embedded(request, encoder, texts)


def prefixes(request: Request, columns: Sequence[pa.Array]) -> tuple[list[str], dict[int, str]]:
    """Returns the prefix of each row, and why for each row whose role or instruction is wrong."""
    table = request.plan.recipe.prompts
    rows = len(columns[0])
    extra = iter(columns[request.texts :])
    if request.role is not None and not request.has_instructions:
        return [prompts.prefix(table, request.role, request.instruction)] * rows, {}
    roles = [request.role] * rows if request.role is not None else text.decode(next(extra))
    instructions = (
        text.decode(next(extra)) if request.has_instructions else [request.instruction] * rows
    )
    found, refused = [], {}
    for row, (role, instruction) in enumerate(zip(roles, instructions, strict=True)):
        try:
            found.append(prompts.prefix(table, role or "", instruction))
        except OptionError as error:
            found.append("")
            refused[row] = str(error)
    return found, refused


def localized(spec: ModelSpec) -> ModelSpec:
    """Returns the spec with each ``archive:name`` replaced by where Spark unpacked it here.

    Raises:
        ModelError: If Spark unpacked no such archive.
    """
    tokenizer = None if spec.tokenizer is None else _unpacked(spec.tokenizer)
    return replace(spec, model=_unpacked(spec.model), tokenizer=tokenizer)


def _unpacked(model: str) -> str:
    if not model.startswith(ARCHIVE):
        return model
    name = model.removeprefix(ARCHIVE)
    # YARN and Kubernetes unpack into the working directory, local mode only where SparkFiles says.
    places = [Path(name).absolute(), *_spark_files(name)]
    for place in places:
        if place.is_dir():
            return str(place)
    raise ModelError(
        f"There is no archive {name!r} here (looked at {', '.join(map(str, places))}); ship it: "
        f"spark-submit --archives model.tar.gz#{name}."
    )


def _spark_files(name: str) -> list[Path]:
    from pyspark import SparkContext, SparkFiles

    # Without a context, as in a Connect client, there are no files either.
    on_worker = TaskContext.get() is not None
    if not on_worker and SparkContext._active_spark_context is None:
        return []
    return [Path(SparkFiles.get(name))]


def _windows(
    batches: Iterable[tuple[pa.Array, ...]], rows: int
) -> Iterator[list[tuple[pa.Array, ...]]]:
    window: list[tuple[pa.Array, ...]] = []
    count = size = 0
    for batch in batches:
        window.append(batch)
        count += len(batch[0])
        size += sum(column.nbytes for column in batch)
        if count >= rows or size >= _WINDOW_BYTES:
            yield window
            window, count, size = [], 0, 0
    if window:
        yield window


@dataclass(frozen=True, kw_only=True)
class _Texts:
    """The texts of a window: row r of text column c is text c * rows + r.

    Attributes:
        rows: Of the table.
        status: Of each text, before it is encoded.
        refused: Row to why its role or instruction is wrong.
        wanted: Which texts are encoded.
        tokens: Theirs.
        seconds: What this took.
    """

    rows: int
    status: list[text.Status]
    refused: dict[int, str]
    wanted: npt.NDArray[np.int64]
    tokens: "Tokenized"
    seconds: float


def _tokenized(
    request: Request, encoder: "Encoder", window: Sequence[tuple[pa.Array, ...]]
) -> _Texts:
    started = time.perf_counter()
    columns = [pa.chunked_array(column).combine_chunks() for column in zip(*window, strict=True)]
    before, refused = prefixes(request, columns)
    rows = len(columns[0])
    texts = [each for column in columns[: request.texts] for each in text.decode(column)]
    status = text.statuses(texts)
    for row in refused:
        status[row::rows] = ["error"] * request.texts
    wanted = [row for row, each in enumerate(status) if each == "ok"]
    tokens = encoder.tokenize(
        [texts[row] or "" for row in wanted], [before[row % rows] for row in wanted]
    )
    return _Texts(
        rows=rows,
        status=status,
        refused=refused,
        wanted=np.array(wanted, dtype=np.int64),
        tokens=tokens,
        seconds=time.perf_counter() - started,
    )


def _embedded(request: Request, encoder: "Encoder", texts: _Texts) -> list[pa.Array]:
    started = time.perf_counter()
    found = encoder.encode_tokens(texts.tokens)
    rows, columns = texts.rows, range(request.texts)
    whole = results.table(
        found,
        wanted=texts.wanted,
        status=texts.status,
        errors={row + rows * c: why for row, why in texts.refused.items() for c in columns},
        plan=request.plan,
    )
    _trace(
        "window",
        rows=len(texts.wanted),
        tokens=int(found.n_tokens.sum()),
        tokenize_seconds=texts.seconds,
        seconds=time.perf_counter() - started,
    )
    return [whole.slice(rows * c, rows) for c in columns]


_loaded: "OrderedDict[EngineKey, Loaded]" = OrderedDict()
_lock = threading.Lock()


def _encoder(plan: Plan) -> "Encoder":
    """The encoder of this worker, loaded once for each engine key.

    It lives as long as the worker process does: Spark keeps idle workers for a minute
    (``spark.python.worker.reuse``) and starts new ones when the session's environment changes.
    """
    from e5spark.encoder import Encoder, load

    context = TaskContext.get()
    threads = context.cpus() if context is not None else None
    spec = replace(localized(plan.spec), device=_device(plan.spec.device))
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
            files = locate(spec)
            check_published(spec, files)
            _check_same(plan, files, describe(spec, files.model))
            _loaded[key] = loaded = load(
                files,
                engine=key.engine,
                precision=key.precision,
                device=spec.device,
                threads=threads,
            )
            # Spark's daemon collects garbage after each task, 0.35 s with torch's and transformers'
            # objects in sight; frozen ones are not looked at again.
            gc.freeze()
            if len(_loaded) > _MOST_LOADED:
                _loaded.popitem(last=False)
            _trace(
                "load",
                model=spec.model,
                engine=loaded.engine.name,
                precision=loaded.engine.precision,
                seconds=time.perf_counter() - started,
            )
        _loaded.move_to_end(key)
        return Encoder(_loaded[key], plan.recipe, spec)


def _check_same(plan: Plan, files: Files, recipe: Recipe) -> None:
    same = plan.weights is None or hash_files(files) == plan.weights
    if not same or recipe != plan.recipe:
        raise ModelError(
            f"The checkpoint in {files.model} on this executor is not the one that the driver "
            "planned with: their files differ. Put the same files on every machine, or ship them "
            "with spark-submit --archives model.tar.gz#model."
        )


def _device(device: str) -> str:
    """Decides ``auto`` where the model runs: the task's GPU, the process's first, else the CPU."""
    if device != "auto":
        return device
    visible = [each.strip() for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    context = TaskContext.get()
    gpu = context.resources().get("gpu") if context is not None else None
    if gpu is not None:
        # torch numbers what the process may see, Spark what the machine has.
        address = gpu.addresses[0]
        return f"cuda:{visible.index(address) if address in visible else address}"
    # -1 and NoDevFiles are how a cluster manager says that there is none.
    return "cpu" if visible[0] in ("", "-1", "NoDevFiles") else "cuda:0"


def _trace(event: str, **facts: object) -> None:
    """Appends what a worker did to ``$E5SPARK_TRACE/<pid>.jsonl``, if that is set."""
    directory = os.environ.get("E5SPARK_TRACE")
    if directory:
        line = json.dumps({"event": event, "pid": os.getpid(), "time": time.time(), **facts})
        with open(Path(directory) / f"{os.getpid()}.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")
