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

from e5spark.cpus import available_cpus
from e5spark.encoder.batching import Batch
from e5spark.encoder.engine import Vectors
from e5spark.errors import ModelError
from e5spark.model import prepared
from e5spark.model.prepared import Manifest
from e5spark.model.registry import Pooling

log = logging.getLogger(__name__)

_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
# Tokens of a batch, measured on 2 cores with e5-small's shape. fp32: 512 are 5 % faster than 1,024,
# and 15 % than 2,048. int8: 1,024 are 8 % faster than 512; its activations take a quarter.
_BUDGETS = {"fp32": 512, "bf16": 512, "int8": 1024}
# Of what widths are multiples. OpenVINO prepares its kernels anew for every shape: with fewer of
# them int8 takes 14 % less CPU time (MiniLM, 1,000 passages), fp32 the same. Widths beyond 128 in
# steps of 16 and 32 are another 8 % (e5-small's shape, windows of 900 passages).
_MULTIPLES = {"fp32": 1, "bf16": 1, "int8": 8}
_Floats = npt.NDArray[np.float32]
# The arrays too, until the pass has ended: OpenVINO reads them where they are.
_Flying = tuple[openvino.InferRequest, Batch, dict[str, npt.NDArray[Any]]]


class OpenVINOEngine:
    """A compiled prepared model: as many forward passes at once as there are threads.

    One thread for each pass and not all threads for one: no pass waits for its slowest thread
    (2 cores: 34 against 30 texts/s of e5-small's shape).
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
        """Takes a compiled model, what it reads, and its token embeddings; see ``load``."""
        self._weights = weights  # for as long as the model lives, which does not own them
        self._embeddings = embeddings
        self._pad_id = pad_id
        self._pad_position = pad_position
        self._requests = [model.create_infer_request() for _ in range(streams)]
        self.precision = precision
        self.token_budget = _BUDGETS[precision]
        self.multiple = _MULTIPLES[precision]

    @classmethod
    def load(
        cls, directory: Path, manifest: Manifest, *, precision: str, threads: int | None
    ) -> "OpenVINOEngine":
        """Returns the engine of a prepared model.

        Args:
            directory: Of the prepared model; its files are mapped into memory, not read.
            manifest: What it is.
            precision: ``fp32``, ``bf16`` or ``int8``.
            threads: CPU threads; None for all of them.

        Raises:
            ModelError: If the files do not make a model, or this CPU cannot run it right.
        """
        if manifest.needs_vnni and not has_vnni():
            raise ModelError(
                f"{directory} was quantised for CPUs with VNNI, which this one lacks: its sums "
                "would overflow. Prepare it again with --overflow-safe."
            )
        streams = threads or available_cpus()
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "NUM_STREAMS": str(streams),
            "INFERENCE_NUM_THREADS": str(streams),
            # Two workers on a machine would pin themselves to the same cores.
            "ENABLE_CPU_PINNING": "NO",
            # What is kept for shapes that have been seen; by default 5,000 entries, which grow to
            # 0.5 GB in int8 (4,000 texts: 1,082 MB, with this 759 MB and 4 % slower).
            "CPU_RUNTIME_CACHE_CAPACITY": "512",
            **manifest.settings,
        }
        try:
            model, weights = _compiled(directory, settings)
            embeddings = np.load(directory / prepared.EMBEDDINGS, mmap_mode="r")
        except (RuntimeError, OSError, ValueError) as error:
            raise ModelError(f"{directory} could not be loaded: {error}") from error
        hint = model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if precision == "bf16" and hint != "bf16":
            # It takes the hint silently where the CPU cannot follow it.
            log.warning("This CPU has no bf16 instructions; OpenVINO computes in %s instead.", hint)
            precision = "fp32"
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
        """Yields for each batch, in order, one vector a row, or what its content made it raise."""
        free = deque(self._requests)
        flying: deque[_Flying | Exception] = deque()
        for batch in batches:
            while not free:
                yield self._finished(flying, free, pooling)
            flying.append(self._started(batch, free))
        while flying:
            yield self._finished(flying, free, pooling)
        _give_back(self._weights)
        _give_back(self._embeddings.base)

    def inputs(self, batch: Batch) -> dict[str, npt.NDArray[Any]]:
        """Returns what the graph is given for a batch.

        Raises:
            IndexError: If the table has no embedding of a token.
        """
        batch.check_ids(len(self._embeddings))
        ids = batch.padded(self._pad_id, multiple=self.multiple)
        mask = (np.arange(ids.shape[1]) < batch.lengths[:, None]).astype(np.int64)
        return {
            "embeddings": self._embeddings[ids],
            "mask": mask,
            "positions": _positions(ids, mask, self._pad_position),
        }

    def _started(self, batch: Batch, free: deque[openvino.InferRequest]) -> _Flying | Exception:
        try:
            given = self.inputs(batch)
        except IndexError as error:
            return error
        request = free.popleft()
        for name, array in given.items():
            request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        request.start_async()
        return request, batch, given

    def _finished(
        self,
        flying: deque[_Flying | Exception],
        free: deque[openvino.InferRequest],
        pooling: Pooling,
    ) -> Vectors | Exception:
        oldest = flying.popleft()
        if isinstance(oldest, Exception):
            return oldest
        request, batch, _ = oldest
        free.append(request)
        try:
            request.wait()
        except RuntimeError as error:
            return error
        return _pool(request.get_output_tensor().data, batch, pooling)


def _positions(
    ids: npt.NDArray[Any], mask: npt.NDArray[np.int64], pad: int | None
) -> npt.NDArray[np.int64]:
    """The position of each token as transformers numbers them; see ``Manifest.pad_position``.

    Args:
        ids: The padded ids.  # (rows, width)
        mask: 1 for each token, 0 for each that fills up; those may be beyond the last position.
        pad: The token that is left out.
    """
    if pad is None:
        return np.arange(ids.shape[1]) * mask
    counted = mask * (ids != pad)
    found: npt.NDArray[np.int64] = counted.cumsum(axis=1) * counted + pad
    return found


def _compiled(
    directory: Path, settings: dict[str, str]
) -> tuple[openvino.CompiledModel, mmap.mmap]:
    """The compiled model, and its file of weights as it is mapped."""
    with open(directory / prepared.WEIGHTS, "rb") as file:
        # A copy on write, because OpenVINO takes no memory that is read-only; it writes nothing.
        weights = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    shared = openvino.Tensor(np.frombuffer(weights, np.uint8), shared_memory=True)
    core = openvino.Core()
    model = core.read_model((directory / prepared.MODEL).read_text("utf-8"), shared)
    compiled = core.compile_model(model, "CPU", settings)
    # Of most it has a copy of its own by now, in the order of its kernels. Resident: large 2,706 to
    # 1,948 MB, small 409 to 369.
    _give_back(weights)
    return compiled, weights


def _give_back(mapped: object) -> None:
    """Takes a file's pages out of this process: they stay in the system's cache, and come back.

    They count against the limits of containers. After each window: resident 440 to 390 MB, small.
    """
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def _pool(hidden: _Floats, batch: Batch, pooling: Pooling) -> Vectors:
    """One vector a row, in fp32 whatever the engine computes in.

    Args:
        hidden: Of every token, padding included.  # (rows, longest, hidden)
        batch: For its lengths.
        pooling: How token vectors become one.
    """
    if pooling == "cls":
        return hidden[:, 0].copy()
    if pooling == "last":
        found: Vectors = hidden[np.arange(len(hidden)), batch.lengths - 1]
        return found
    inside = np.arange(hidden.shape[1]) < batch.lengths[:, None]
    weights = (inside / batch.lengths[:, None]).astype(np.float32)
    means: Vectors = np.matmul(weights[:, None, :], hidden)[:, 0]
    return means


@functools.cache
def has_vnni() -> bool:
    """Returns whether this CPU sums int8 products without overflow."""
    try:
        flags = Path("/proc/cpuinfo").read_text("ascii", "replace")
    except OSError:
        return False
    return "avx512_vnni" in flags or "avx_vnni" in flags
