"""The OpenVINO engine: runs a prepared model on CPUs, without torch or transformers."""

import functools
import logging
import mmap
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino
import openvino.opset13 as opset

from e5spark.cpus import available_cpus
from e5spark.encoder.batching import Batch
from e5spark.encoder.engine import LoadedModel, Vectors
from e5spark.encoder.engines.preparation import check_preparable, prepared_directory
from e5spark.encoder.tokenizer import Tokenizer
from e5spark.errors import ModelError
from e5spark.model import prepared
from e5spark.model.checkpoint import Files
from e5spark.model.prepared import Manifest
from e5spark.model.registry import Pooling

log = logging.getLogger(__name__)

_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
# Tokens of a batch, measured on 2 cores with e5-small's shape. fp32: 512 is 5 % faster than 1,024
# and 15 % faster than 2,048. bf16: 768 and 1,024 take 2 % less CPU time than 512. int8: 1,024 is
# 8 % faster than 512; its activations take a quarter of the memory.
_BUDGETS = {"fp32": 512, "bf16": 768, "int8": 1024}
# OpenVINO prepares kernels for every shape, for 10 to 20 ms in bf16 and int8, and its cache is too
# small for a shape of each length; and kernels for odd widths are slower. The real e5-small-v2, 800
# passages of 16 to 500 tokens, CPU seconds: bf16 8.5 with a width of each length, 8.1 in steps of 8
# or 16, 8.6 in steps of 32; int8 5.8 in steps of 8, 5.4 of 16, 5.8 of 32; fp32 13.9 in any. 3,000
# queries of 12 tokens: int8 3.2 where all widths are multiples of 8, and 3.0 in steps of 2.
_STEPS = {"fp32": 1, "bf16": 8, "int8": 16}
_Floats = npt.NDArray[np.float32]
# The arrays live until the pass has ended, because OpenVINO reads them in place.
_Pass = tuple[openvino.InferRequest, Batch, dict[str, npt.NDArray[Any]]]


def load(files: Files, *, precision: str, device: str, threads: int | None) -> LoadedModel:
    """Returns the tokenizer and the engine of a prepared model; prepares a checkpoint first.

    Args:
        files: A prepared model, or a checkpoint.
        precision: See ``OpenVINOEngine.load``.
        device: ``cpu`` or ``auto``; this engine runs on CPUs only.
        threads: See ``OpenVINOEngine.load``.

    Raises:
        ModelError: If the checkpoint cannot be prepared, or its prepared model cannot be loaded.
    """
    del device
    directory = files.model
    if prepared.read(directory) is None:
        directory = prepared_directory(files)
    manifest = prepared.read(directory)
    if manifest is None:
        raise ModelError(f"{directory} is not a prepared model; delete it and start again.")
    tokenizer = Tokenizer.read(directory / prepared.TOKENIZER, pad_id=manifest.pad_id)
    engine = OpenVINOEngine.load(directory, manifest, precision=precision, threads=threads)
    return LoadedModel(tokenizer=tokenizer, engine=engine)


def check(files: Files, *, precision: str, device: str) -> str:
    """Checks what ``load`` needs on this machine; nothing is prepared and no weight is read.

    Args:
        files: A prepared model, or a checkpoint.
        precision: ``fp32``, ``bf16`` or ``int8``.
        device: ``cpu`` or ``auto``.

    Returns:
        The precision that a loaded model would compute in.

    Raises:
        ModelError: If this CPU would compute wrong vectors.
        OptionError: If the checkpoint cannot be prepared here.
    """
    del device
    manifest = prepared.read(files.model)
    if manifest is None:
        check_preparable(files)
    else:
        _check_vnni(files.model, manifest)
    # The precision is the CPU's, whatever the model: a graph of one addition tells it in 10 ms.
    number = opset.parameter([1], np.float32)
    graph = openvino.Model([opset.add(number, number)], [number])
    settings = {"INFERENCE_PRECISION_HINT": _HINTS[precision]}
    return _actual_precision(openvino.Core().compile_model(graph, "CPU", settings), precision)


class OpenVINOEngine:
    """A compiled prepared model that runs as many forward passes at once as it has threads.

    Each pass has one thread, so that no pass waits for its slowest thread (2 cores, e5-small's
    shape: 34 texts/s, against 30 with all threads in one pass).
    """

    packed = False
    name = "openvino"

    def __init__(
        self,
        model: openvino.CompiledModel,
        weights: mmap.mmap,
        embeddings: _Floats,
        *,
        precision: str,
        pad_id: int,
        pad_position: int | None,
        streams: int,
    ) -> None:
        """Wraps a compiled model; ``load`` makes one.

        Args:
            model: The graph that follows the embedding lookup.
            weights: The mapped file that the model reads its weights from.
            embeddings: The mapped table of token embeddings.  # (vocabulary, hidden)
            precision: The precision that the model computes in.
            pad_id: The padding token.
            pad_position: See ``Manifest``.
            streams: Number of forward passes that run at once.
        """
        self._weights = weights  # kept alive for the model, which does not own them
        self._embeddings = embeddings
        self._pad_id = pad_id
        self._pad_position = pad_position
        self._requests = [model.create_infer_request() for _ in range(streams)]
        self.precision = precision
        self.token_budget = _BUDGETS[precision]
        self.step = _STEPS[precision]

    @classmethod
    def load(
        cls, directory: Path, manifest: Manifest, *, precision: str, threads: int | None
    ) -> "OpenVINOEngine":
        """Returns the engine of a prepared model.

        Args:
            directory: The prepared model's directory; its files are mapped into memory, not read.
            manifest: The prepared model's manifest.
            precision: ``fp32``, ``bf16`` or ``int8``.
            threads: CPU threads; None for all of them.

        Raises:
            ModelError: If the files do not hold a model, or this CPU would compute wrong vectors.
        """
        _check_vnni(directory, manifest)
        streams = threads or available_cpus()
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "NUM_STREAMS": str(streams),
            "INFERENCE_NUM_THREADS": str(streams),
            # Two workers on a machine would pin themselves to the same cores.
            "ENABLE_CPU_PINNING": "NO",
            # The number of shapes whose kernels are cached. With the default, 5,000, the cache
            # grows to 0.5 GB in int8 (4,000 texts: 1,082 MB; with 512 entries 759 MB, and 4 %
            # slower).
            "CPU_RUNTIME_CACHE_CAPACITY": "512",
            **manifest.settings,
        }
        try:
            model, weights = _compile(directory, settings)
            embeddings = np.load(directory / prepared.EMBEDDINGS, mmap_mode="r")
        except (RuntimeError, OSError, ValueError) as error:
            raise ModelError(
                f"{directory} could not be loaded: {error}. Prepare the model again."
            ) from error
        precision = _actual_precision(model, precision)
        return cls(
            model,
            weights,
            embeddings,
            precision=precision,
            pad_id=manifest.pad_id,
            pad_position=manifest.pad_position,
            streams=streams,
        )

    def run(self, batches: Iterable[Batch], pooling: Pooling) -> Iterator[Vectors | Exception]:
        """Yields the vectors of each batch, or the exception that its content caused, in order."""
        idle = deque(self._requests)
        running: deque[_Pass | Exception] = deque()
        for batch in batches:
            while not idle:
                yield self._finish(running, idle, pooling)
            running.append(self._start(batch, idle))
        while running:
            yield self._finish(running, idle, pooling)
        _release_pages(self._weights)
        _release_pages(self._embeddings.base)

    def inputs(self, batch: Batch) -> dict[str, npt.NDArray[Any]]:
        """Returns the inputs of the graph, by name, for a batch.

        Raises:
            IndexError: If the table has no embedding of a token.
        """
        batch.check_ids(len(self._embeddings))
        ids = batch.padded(self._pad_id, step=self.step)
        mask = (np.arange(ids.shape[1]) < batch.lengths[:, None]).astype(np.int64)
        return {
            "embeddings": self._embeddings[ids],
            "mask": mask,
            "positions": _positions(ids, mask, self._pad_position),
        }

    def _start(self, batch: Batch, idle: deque[openvino.InferRequest]) -> _Pass | Exception:
        try:
            inputs = self.inputs(batch)
        except IndexError as error:
            return error
        request = idle.popleft()
        for name, array in inputs.items():
            request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        request.start_async()
        return request, batch, inputs

    def _finish(
        self,
        running: deque[_Pass | Exception],
        idle: deque[openvino.InferRequest],
        pooling: Pooling,
    ) -> Vectors | Exception:
        oldest = running.popleft()
        if isinstance(oldest, Exception):
            return oldest
        request, batch, _ = oldest
        idle.append(request)
        try:
            request.wait()
        except RuntimeError as error:
            return error
        return _pool(request.get_output_tensor().data, batch, pooling)


def _check_vnni(directory: Path, manifest: Manifest) -> None:
    if manifest.needs_vnni and not has_vnni():
        raise ModelError(
            f"{directory} was quantised for CPUs with VNNI, which this one lacks: its sums "
            "would overflow. Prepare it again with --overflow-safe."
        )


def _actual_precision(model: openvino.CompiledModel, precision: str) -> str:
    """The precision that a model which was compiled for another one computes in."""
    hint = model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if precision == "bf16" and hint != "bf16":
        # OpenVINO accepts the hint silently on a CPU that cannot follow it.
        log.warning("This CPU has no bf16 instructions; OpenVINO computes in %s instead.", hint)
        return "fp32"
    return precision


def _positions(
    ids: npt.NDArray[Any], mask: npt.NDArray[np.int64], pad: int | None
) -> npt.NDArray[np.int64]:
    """The position of each token as transformers numbers them; see ``Manifest.pad_position``.

    Args:
        ids: The padded ids.  # (rows, width)
        mask: 1 for each token, 0 for padding, which may lie beyond the last position.  # like ids
        pad: The token that is not numbered; None numbers every token from 0.
    """
    if pad is None:
        return np.arange(ids.shape[1]) * mask
    counted = mask * (ids != pad)
    positions: npt.NDArray[np.int64] = counted.cumsum(axis=1) * counted + pad
    return positions


def _compile(directory: Path, settings: dict[str, str]) -> tuple[openvino.CompiledModel, mmap.mmap]:
    """The compiled model, and its mapped file of weights."""
    with open(directory / prepared.WEIGHTS, "rb") as file:
        # Copy on write: OpenVINO refuses read-only memory, and writes nothing.
        weights = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    shared = openvino.Tensor(np.frombuffer(weights, np.uint8), shared_memory=True)
    core = openvino.Core()
    model = core.read_model((directory / prepared.MODEL).read_text("utf-8"), shared)
    compiled = core.compile_model(model, "CPU", settings)
    # The model now has its own copy of most weights, in the order of its kernels. Resident
    # memory falls from 2,706 to 1,948 MB (large), from 409 to 369 MB (small).
    _release_pages(weights)
    return compiled, weights


def _release_pages(mapped: object) -> None:
    """Drops a mapped file's pages from this process; the next access finds them in the page cache.

    Resident pages count against the limits of containers. If they are dropped after each sort
    window, 390 instead of 440 MB stay resident (small).
    """
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def _pool(hidden: _Floats, batch: Batch, pooling: Pooling) -> Vectors:
    """The pooled vectors of a batch, in fp32 whatever the engine computes in.  # (rows, hidden).

    Args:
        hidden: The hidden state of every token, padding included.  # (rows, longest, hidden)
        batch: The rows, for their lengths.
        pooling: ``mean``, ``cls`` or ``last``.
    """
    if pooling == "cls":
        return hidden[:, 0].copy()
    if pooling == "last":
        last: Vectors = hidden[np.arange(len(hidden)), batch.lengths - 1]
        return last
    is_token = np.arange(hidden.shape[1]) < batch.lengths[:, None]
    weights = (is_token / batch.lengths[:, None]).astype(np.float32)
    means: Vectors = np.matmul(weights[:, None, :], hidden)[:, 0]
    return means


@functools.cache
def has_vnni() -> bool:
    """Returns whether this CPU adds int8 products without overflow (VNNI)."""
    try:
        flags = Path("/proc/cpuinfo").read_text("ascii", "replace")
    except OSError:
        return False
    return "avx512_vnni" in flags or "avx_vnni" in flags
