"""What is expensive about a checkpoint: its tokenizer and the engine that runs it."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from e5spark.checkpoint import Files
from e5spark.encoder.tokenizer import Tokenizer, appends_eos
from e5spark.models import Pooling

Vectors = npt.NDArray[np.float32]


class Engine(Protocol):
    """What runs a checkpoint: padded token ids in, one pooled vector a row out."""

    def pool(
        self, ids: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], pooling: Pooling
    ) -> Vectors:
        """Returns one float32 vector for each row, not normalised.  # (rows, hidden)."""
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

    engine = TorchEngine.load(files.model, precision=precision, device=device, threads=threads)
    tokenizer = Tokenizer.load(files.tokenizer, appends_eos=appends_eos(files.model))
    return Loaded(tokenizer=tokenizer, engine=engine)
