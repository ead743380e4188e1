"""Copies between host and device: arrays to the device, vectors back to the host."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy.typing as npt
import torch

from e5spark.encoder.engine import Vectors

PendingVectors = Callable[[], Vectors]
"""Vectors on their way to the host: a call waits for them and returns them.  # (rows, hidden)"""


class Transfer(Protocol):
    """Copies to a device and back.

    Attributes:
        prefetch: Batches that start before the vectors of an earlier one are awaited.
    """

    prefetch: int

    def to_device(self, arrays: Sequence[npt.NDArray[Any]]) -> list[torch.Tensor]:
        """Returns the arrays as tensors on the device, in order, for the work queued next."""
        ...

    def to_host(self, vectors: torch.Tensor) -> PendingVectors:
        """Returns a callable that waits for the vectors and returns them on the host, float32."""
        ...


class BlockingTransfer:
    """Copies on any device: the host waits for each one. On the CPU nothing is copied."""

    prefetch = 0

    def __init__(self, device: torch.device) -> None:
        """Copies to and from a device.

        Args:
            device: The device of the model.
        """
        self._device = device

    def to_device(self, arrays: Sequence[npt.NDArray[Any]]) -> list[torch.Tensor]:
        """Returns the arrays as tensors on the device; see ``Transfer``."""
        return [torch.from_numpy(array).to(self._device) for array in arrays]

    def to_host(self, vectors: torch.Tensor) -> PendingVectors:
        """Returns a callable that brings the vectors to the host; see ``Transfer``."""
        return lambda: vectors.cpu().numpy()


class OverlappedTransfer:
    """Copies on a CUDA device: they overlap with forward passes, and the host prefetches.

    Each direction has its own stream, ordered by events, and nothing waits for the whole device.
    Page-locked buffers come from torch's caching allocator, which reuses one when the copies that
    use it are done.
    """

    prefetch = 1

    def __init__(self, device: torch.device) -> None:
        """Copies to and from a device.

        Args:
            device: The device of the model.
        """
        self._device = device
        self._upload, self._download = (torch.cuda.Stream(device) for _ in range(2))  # type: ignore[no-untyped-call]

    def to_device(self, arrays: Sequence[npt.NDArray[Any]]) -> list[torch.Tensor]:
        """Returns the arrays as tensors on the device; see ``Transfer``."""
        compute = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._upload):
            tensors = [
                torch.from_numpy(array).pin_memory().to(self._device, non_blocking=True)
                for array in arrays
            ]
        compute.wait_stream(self._upload)
        for tensor in tensors:
            # Otherwise the allocator could reuse its memory while a kernel reads it.
            tensor.record_stream(compute)
        return tensors

    def to_host(self, vectors: torch.Tensor) -> PendingVectors:
        """Returns a callable that waits for the vectors; see ``Transfer``."""
        host = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
        self._download.wait_stream(torch.cuda.current_stream(self._device))
        # The host sleeps on this event instead of spinning: the CPU has texts to tokenise.
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._download):
            host.copy_(vectors, non_blocking=True)
            done.record()
        vectors.record_stream(self._download)

        def fetch() -> Vectors:
            done.synchronize()
            on_host: Vectors = host.numpy()
            return on_host

        return fetch
