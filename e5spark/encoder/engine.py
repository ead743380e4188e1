"""The protocol of an engine, which runs a checkpoint's forward passes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from e5spark.encoder.batching import Batch
from e5spark.encoder.tokenizer import Tokenizer
from e5spark.model.registry import Pooling

Vectors = npt.NDArray[np.float32]


class Engine(Protocol):
    """Runs a checkpoint: token ids in, one pooled vector per row out.

    Attributes:
        name: Its name in ``e5spark.model.engines``.
        precision: The precision that it computes in, read back from the loaded model: ``fp32``,
            ``bf16`` or ``int8``.
        token_budget: The number of tokens per forward pass, padding included, that suits it best.
        packed: Whether rows of different lengths need no padding.
        step: How far apart the widths of padded batches are; see ``padded_width``.
    """

    name: str
    precision: str
    token_budget: int
    packed: bool
    step: int

    def run(self, batches: Iterable[Batch], pooling: Pooling) -> Iterator[Vectors | Exception]:
        """Yields the vectors of each batch, or the exception that its content caused, in order.

        Vectors are float32 and not normalised.  # (rows, hidden)
        An engine may take further batches before it yields the vectors of the first.

        Raises:
            E5SparkError: If the engine itself fails, whatever the texts.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """The tokenizer and the engine of one checkpoint: costly to load, shared by all roles."""

    tokenizer: Tokenizer
    engine: Engine
