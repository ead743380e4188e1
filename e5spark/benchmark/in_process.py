"""Contenders without Spark, in one process with all threads."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from e5spark.benchmark import passes
from e5spark.benchmark.task import SAMPLE, LoadedContender, Task

Encode = Callable[[Sequence[str]], npt.NDArray[np.float32]]


def start(task: Task) -> LoadedContender:
    """Returns the contender of a task, with its model loaded."""
    texts = task.read_texts()
    sample = texts[:SAMPLE]
    started = time.time()
    encode = _KINDS[task.kind](task)
    vectors = encode(sample)
    first = passes.totals(started).first
    return LoadedContender(
        vectors=vectors,
        first_vector_seconds=None if first is None else first - started,
        embed=lambda: _consume(encode(texts)),
        warm_up=lambda: _consume(encode(sample)),
        stop=lambda: None,
    )


def _consume(vectors: npt.NDArray[np.float32]) -> None:
    if not np.isfinite(vectors).all():
        raise ValueError("A vector has a component that is not finite.")


def _encoder(task: Task) -> Encode:
    from e5spark.benchmark.counter import counted_encoder
    from e5spark.encoder import Encoder

    encoder = counted_encoder(Encoder.load(task.model, threads=task.threads, **task.model_options))
    return lambda texts: encoder.encode(texts, role=task.role)


def _sentence_transformers(task: Task) -> Encode:
    import torch

    from e5spark.benchmark.sentence_model import sentence_model

    torch.set_num_threads(task.threads)
    model = sentence_model(task.model, **task.options)
    return lambda texts: np.asarray(
        model.encode([task.prefix + text for text in texts]), dtype=np.float32
    )


_KINDS: dict[str, Callable[[Task], Encode]] = {
    "encoder": _encoder,
    "sentence-transformers": _sentence_transformers,
}
