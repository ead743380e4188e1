"""A checkpoint that costs nothing, to measure what e5spark does around a model."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from e5spark.benchmark.counter import run_with
from e5spark.encoder import LoadedModel
from e5spark.encoder.batching import Batch
from e5spark.encoder.engine import Vectors
from e5spark.encoder.tokenizer import Tokenizer, Tokens
from e5spark.model.checkpoint import Files
from e5spark.model.json_file import read_json
from e5spark.model.registry import Pooling
from e5spark.spark.worker import Request

_TOKENS = 8  # per text, so that micro-batches have a few hundred rows


class ConstantEngine:
    """Returns the same vector for every text."""

    name = "torch"
    precision = "fp32"
    token_budget = 2048
    packed = False
    step = 1

    def __init__(self, hidden: int) -> None:
        self._vector = np.ones(hidden, dtype=np.float32)

    def run(self, batches: Iterable[Batch], pooling: Pooling) -> Iterator[Vectors | Exception]:
        """Yields one constant vector per row of each batch.  # (rows, hidden)."""
        del pooling
        for batch in batches:
            yield np.tile(self._vector, (len(batch.lengths), 1))


class ConstantTokenizer(Tokenizer):
    """Returns the same few tokens for every text, without reading it."""

    def tokenize(self, texts: Sequence[str], max_tokens: int) -> Tokens:
        """Returns a constant number of tokens per text."""
        del max_tokens
        return Tokens(
            ids=np.ones(len(texts) * _TOKENS, dtype=np.int32),
            offsets=np.arange(len(texts) + 1, dtype=np.int64) * _TOKENS,
            n_tokens=np.full(len(texts), _TOKENS, dtype=np.int32),
        )


def load_constant(files: Files, *, tokenizer: bool, **options: Any) -> LoadedModel:  # noqa: ANN401
    """Returns a checkpoint without a model.

    Args:
        files: The checkpoint's files.
        tokenizer: Whether the checkpoint's tokenizer runs; otherwise a constant one does.
        **options: The other options of ``e5spark.encoder.load``, which are ignored.
    """
    del options
    hidden = int(read_json(files.model / "config.json")["hidden_size"])
    tokenizer_class = Tokenizer if tokenizer else ConstantTokenizer
    return LoadedModel(
        tokenizer=tokenizer_class.load(files.tokenizer), engine=ConstantEngine(hidden)
    )


def run_constant(
    request: Request, batches: Iterable[tuple[pa.Array, ...]], *, tokenizer: bool
) -> Iterator[list[pa.Array]]:
    """Yields the results of ``e5spark.spark.worker.run``, with constant vectors."""
    return run_with(partial(load_constant, tokenizer=tokenizer), request, batches)
