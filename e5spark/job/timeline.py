"""The speed of a run over time, in a fixed number of bins whatever the number of its chunks."""

import time
from collections.abc import Mapping
from threading import Lock
from typing import Any

_BINS = 120
_FIRST_WIDTH = 0.25  # seconds of a bin; it doubles when the bins are full


class Timeline:
    """Adds up rows and tokens over time; ``add`` may be called from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._origin: float | None = None
        self._width = _FIRST_WIDTH
        self._bins = {"rows": [0.0] * _BINS, "tokens": [0.0] * _BINS}
        self._end = 0.0
        self._chunks, self._seconds = 0, 0.0
        self._lowest, self._highest = float("inf"), 0.0

    def add(
        self, *, seconds: float, amounts: Mapping[str, int], ended: float | None = None
    ) -> None:
        """Adds a chunk, whose rows and tokens are spread evenly over its time.

        Args:
            seconds: From its Spark job to its commit.
            amounts: Its ``rows`` and ``tokens``.
            ended: When, by ``time.monotonic``; now by default.
        """
        end = time.monotonic() if ended is None else ended
        with self._lock:
            if self._origin is None:
                self._origin = end - seconds
            end = max(end - self._origin, 0.0)
            # A chunk that began before the first one to end counts from then on.
            begin = min(max(end - seconds, 0.0), end)
            self._chunks += 1
            self._seconds += seconds
            self._lowest, self._highest = min(self._lowest, seconds), max(self._highest, seconds)
            self._end = max(self._end, end)
            while self._end > self._width * _BINS:
                self._halve()
            for name, bins in self._bins.items():
                _spread(bins, amounts[name], begin / self._width, end / self._width)

    def as_dict(self) -> dict[str, Any] | None:
        """Returns the bins and the seconds of chunks; None without chunks."""
        if not self._chunks:
            return None
        count = min(max(1, -int(-self._end // self._width)), _BINS)
        return {
            "chunks": self._chunks,
            "chunk_seconds": {
                "lowest": round(self._lowest, 3),
                "mean": round(self._seconds / self._chunks, 3),
                "highest": round(self._highest, 3),
            },
            "seconds": self._width,
            "last_seconds": round(self._end - self._width * (count - 1), 3),
            **{
                name: [round(amount, 1) for amount in bins[:count]]
                for name, bins in self._bins.items()
            },
        }

    def _halve(self) -> None:
        """Makes one bin of each two."""
        self._width *= 2
        for name, bins in self._bins.items():
            halved = [one + other for one, other in zip(bins[::2], bins[1::2], strict=True)]
            self._bins[name] = halved + [0.0] * (_BINS - len(halved))


def _spread(bins: list[float], amount: float, begin: float, end: float) -> None:
    """Adds an amount to the bins from one place to another, as much to each as it overlaps."""
    first, last = min(int(begin), len(bins) - 1), min(int(end), len(bins) - 1)
    if first == last or end - begin < 1e-9:
        bins[last] += amount
        return
    for number in range(first, last + 1):
        overlap = min(end, number + 1) - max(begin, number)
        bins[number] += amount * max(overlap, 0) / (end - begin)
