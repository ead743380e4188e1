"""How arrays reach the device, and vectors come back from it."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy.typing as npt
import torch

from e5spark.encoder.engine import Vectors

Pending = Callable[[], Vectors]
"""Vectors on their way: waits for them and returns them.  # (rows, hidden)"""


class Transfer(Protocol):
    """A way to the device and back.

    Attributes:
        ahead: The batches that may be on their way while the one before them is awaited.
    """

    ahead: int

    def up(self, arrays: Sequence[npt.NDArray[Any]]) -> list[torch.Tensor]:
        """Returns the arrays on the device, in order, for the work that is queued next."""
        ...

    def down(self, vectors: torch.Tensor) -> Pending:
        """Returns what waits for the vectors and brings them to the host, as float32."""
        ...


class Blocking:
    """The way of every device: the host waits for each copy. On the CPU nothing is copied."""

    ahead = 0

    def __init__(self, device: torch.device) -> None:
        """Takes where to."""
        self._device = device

    def up(self, arrays: Sequence[npt.NDArray[Any]]) -> list[torch.Tensor]:
        """Returns the arrays on the device; see ``Transfer``."""
        return [torch.from_numpy(each).to(self._device) for each in arrays]

    def down(self, vectors: torch.Tensor) -> Pending:
        """Returns what brings the vectors to the host; see ``Transfer``."""
        return lambda: vectors.cpu().numpy()


class Overlapped:
    """The way of a CUDA device: copies run beside the forward passes, and the host runs ahead.

    Each direction has its own stream, ordered by events, and nothing waits for the whole device.
    Page-locked buffers come from torch's caching allocator, which hands one out again once the
    copies that use it are done.
    """

    ahead = 1

    def __init__(self, device: torch.device) -> None:
        """Takes where to."""
        self._device = device
        self._up, self._down = (torch.cuda.Stream(device) for _ in range(2))  # type: ignore[no-untyped-call]

    def up(self, arrays: Sequence[npt.NDArray[Any]]) -> list[torch.Tensor]:
        """Returns the arrays on the device; see ``Transfer``."""
        compute = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._up):
            moved = [
                torch.from_numpy(each).pin_memory().to(self._device, non_blocking=True)
                for each in arrays
            ]
        compute.wait_stream(self._up)
        for each in moved:
            each.record_stream(compute)  # or its memory could be handed out while it is read
        return moved

    def down(self, vectors: torch.Tensor) -> Pending:
        """Returns what waits for the vectors; see ``Transfer``."""
        host = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
        self._down.wait_stream(torch.cuda.current_stream(self._device))
        # One that sleeps: the processor has tokens to make.
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._down):
            host.copy_(vectors, non_blocking=True)
            done.record()
        vectors.record_stream(self._down)

        def fetch() -> Vectors:
            done.synchronize()
            found: Vectors = host.numpy()
            return found

        return fetch
