"""What is expensive about a checkpoint: its tokenizer and the engine that runs it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from e5spark.batching import Batch
from e5spark.checkpoint import Files
from e5spark.encoder.tokenizer import Tokenizer, appends_eos
from e5spark.models import Pooling

Vectors = npt.NDArray[np.float32]


class Engine(Protocol):
    """What runs a checkpoint: token ids in, one pooled vector a row out.

    Attributes:
        token_budget: The tokens of a forward pass, padding included, that suit it best.
        packed: Whether rows of different lengths cost it no padding.
    """

    token_budget: int
    packed: bool

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


def load(files: Files, *, precision: str, device: str, threads: int | None) -> Loaded:
    """Returns the loaded checkpoint; ``precision`` is decided by now, ``auto`` is not one."""
    # Importing the door must load no engine; loading a model loads the one it needs.
    from e5spark.encoder.torch_engine import TorchEngine

    tokenizer = Tokenizer.load(files.tokenizer, appends_eos=appends_eos(files.model))
    engine = TorchEngine.load(
        files.model,
        precision=precision,
        device=device,
        threads=threads,
        pad_id=tokenizer.pad_id,
    )
    return Loaded(tokenizer=tokenizer, engine=engine)
