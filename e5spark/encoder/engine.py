"""The protocol of the engines: what runs a checkpoint."""

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
    """What runs a checkpoint: token ids in, one pooled vector a row out.

    Attributes:
        name: ``torch`` or ``openvino``.
        precision: What it computes in, as it says itself: ``fp32``, ``bf16`` or ``int8``.
        token_budget: The tokens of a forward pass, padding included, that suit it best.
        packed: Whether rows of different lengths cost it no padding.
        multiple: Of the widths of its batches, if it pads them; see ``padded_width``.
    """

    name: str
    precision: str
    token_budget: int
    packed: bool
    multiple: int

    def run(self, batches: Iterable[Batch], pooling: Pooling) -> Iterator[Vectors | Exception]:
        """Yields for each batch, in order, one vector a row, or what its content made it raise.

        It may take batches ahead of those it has yielded. The vectors are float32 and not
        normalised.  # (rows, hidden)

        Raises:
            E5SparkError: If the engine itself is broken, so that no text is to blame.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A tokenizer and an engine of one checkpoint: what is expensive, and shared by every role."""

    tokenizer: Tokenizer
    engine: Engine
