"""A counter of tokens in front of e5spark's engines, in this process and in Spark's workers.

The engine that ``e5spark.encoder.load`` returns is wrapped in the process that runs it. e5spark
itself does not know about the counter, and has no option for it.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa

from e5spark import encoder
from e5spark.benchmark import passes
from e5spark.encoder import Encoder, LoadedModel
from e5spark.encoder.batching import Batch, padded_width
from e5spark.encoder.engine import Engine, Vectors
from e5spark.model.registry import Pooling
from e5spark.spark import udf, worker
from e5spark.spark.worker import Request

Load = Callable[..., LoadedModel]
_load = encoder.load  # the original, because run_with replaces it


class CountedEngine:
    """An engine that records the tokens of each forward pass."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        """Returns any other attribute of the engine."""
        return getattr(self._engine, name)

    def run(self, batches: Iterable[Batch], pooling: Pooling) -> Iterator[Vectors | Exception]:
        """Yields the engine's vectors, and records the tokens of each pass."""
        pending: deque[Batch] = deque()  # an engine may take batches before it yields vectors

        def recorded() -> Iterator[Batch]:
            for batch in batches:
                pending.append(batch)
                yield batch

        for vectors in self._engine.run(recorded(), pooling):
            lengths = pending.popleft().lengths
            tokens = int(lengths.sum())
            width = padded_width(int(lengths.max(initial=0)), self._engine.step)
            passes.record(tokens, tokens if self._engine.packed else len(lengths) * width)
            yield vectors


def counted(loaded: LoadedModel) -> LoadedModel:
    """Returns a loaded checkpoint whose engine counts."""
    engine: Any = CountedEngine(loaded.engine)  # an Engine, by delegation
    return replace(loaded, engine=engine)


def counted_encoder(encoder: Encoder) -> Encoder:
    """Returns the encoder with an engine that counts."""
    return Encoder(counted(encoder._loaded), encoder.recipe, encoder._spec)


def load_counted(*args: Any, **options: Any) -> LoadedModel:  # noqa: ANN401  # encoder.load's
    """Returns a checkpoint that ``e5spark.encoder.load`` loaded, with a counter."""
    return counted(_load(*args, **options))


def run_counted(
    request: Request, batches: Iterable[tuple[pa.Array, ...]]
) -> Iterator[list[pa.Array]]:
    """Yields the results of ``e5spark.spark.worker.run``, and counts the tokens of every pass."""
    return run_with(load_counted, request, batches)


def run_with(
    load: Load, request: Request, batches: Iterable[tuple[pa.Array, ...]]
) -> Iterator[list[pa.Array]]:
    """Yields the results of ``e5spark.spark.worker.run``, with another loader of checkpoints.

    The worker process belongs to one contender, so that replacing the function affects no other.
    """
    encoder.load = load
    return worker.run(request, batches)


def install(run: Callable[..., Iterator[list[pa.Array]]]) -> None:
    """Makes UDFs that this driver builds from now on call ``run`` in their workers."""
    udf.run = run  # type: ignore[attr-defined]  # a name that udf imports
