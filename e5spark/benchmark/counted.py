"""e5spark's own engines with a counter before them, in this process and inside Spark's workers.

The seam is the engine: whatever ``e5spark.encoder.load`` returns is wrapped in the process that
runs it. e5spark itself knows nothing of it, and has no option for it.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa

from e5spark import encoder
from e5spark.benchmark import ledger
from e5spark.encoder import Encoder, Loaded
from e5spark.encoder.batching import Batch, padded_width
from e5spark.encoder.engine import Engine, Vectors
from e5spark.model.registry import Pooling
from e5spark.spark import udf, worker
from e5spark.spark.worker import Request

Load = Callable[..., Loaded]
_load = encoder.load  # e5spark's own, whatever stands in its place later


class CountedEngine:
    """An engine that notes down the tokens of each forward pass."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        """Returns what else the engine has."""
        return getattr(self._engine, name)

    def run(self, batches: Iterable[Batch], pooling: Pooling) -> Iterator[Vectors | Exception]:
        """Yields what the engine yields."""
        taken: deque[Batch] = deque()  # an engine may be ahead of what it has yielded

        def seen() -> Iterator[Batch]:
            for batch in batches:
                taken.append(batch)
                yield batch

        for vectors in self._engine.run(seen(), pooling):
            lengths = taken.popleft().lengths
            tokens = int(lengths.sum())
            width = padded_width(int(lengths.max(initial=0)), self._engine.multiple)
            ledger.note(tokens, tokens if self._engine.packed else len(lengths) * width)
            yield vectors


def counted(loaded: Loaded) -> Loaded:
    """Returns a loaded checkpoint whose engine counts."""
    engine: Any = CountedEngine(loaded.engine)  # an Engine: it has all that its own has
    return replace(loaded, engine=engine)


def counted_encoder(made: Encoder) -> Encoder:
    """Returns an encoder whose engine counts."""
    return Encoder(counted(made._loaded), made.recipe, made._spec)


def load_counted(*args: Any, **options: Any) -> Loaded:  # noqa: ANN401  # those of encoder.load
    """Loads as e5spark does, with a counter."""
    return counted(_load(*args, **options))


def run_counted(
    request: Request, batches: Iterable[tuple[pa.Array, ...]]
) -> Iterator[list[pa.Array]]:
    """What e5spark runs in a worker, where every checkpoint is loaded with a counter."""
    return run_with(load_counted, request, batches)


def run_with(
    load: Load, request: Request, batches: Iterable[tuple[pa.Array, ...]]
) -> Iterator[list[pa.Array]]:
    """What e5spark runs in a worker, with another way to load a checkpoint.

    The worker belongs to one contender, so what is put in place here hurts nobody.
    """
    encoder.load = load
    return worker.run(request, batches)


def install(run: Callable[..., Iterator[list[pa.Array]]]) -> None:
    """Makes the UDFs that this driver builds from now on call ``run`` in their workers."""
    udf.run = run  # type: ignore[attr-defined]  # a name that it has imported
