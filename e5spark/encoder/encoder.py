"""The encoder: texts in, unit vectors out, in order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Unpack

import numpy as np
import numpy.typing as npt

from e5spark import prompts, text
from e5spark.batching import micro_batches
from e5spark.checkpoint import Files, check_published, locate
from e5spark.encoder.tokenizer import Tokenizer, Tokens
from e5spark.errors import TextError
from e5spark.models import Pooling, Recipe
from e5spark.recipe import describe
from e5spark.spec import ModelOptions, ModelSpec, model_spec

Vectors = npt.NDArray[np.float32]


class Engine(Protocol):
    """What runs a checkpoint: padded token ids in, one pooled vector a row out."""

    def pool(
        self, ids: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], pooling: Pooling
    ) -> Vectors:
        """Returns one float32 vector for each row, not normalised.  # (rows, hidden)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What became of some texts, in their order.

    Attributes:
        vectors: float32; a text with an error has zeros.  # (texts, dim)
        n_tokens: Tokens before truncation, prompt and special tokens included.  # (texts,)
        truncated: Which texts lost tokens.  # (texts,)
        errors: Position to message of each text that the engine could not take.
    """

    vectors: Vectors
    n_tokens: npt.NDArray[np.int32]
    truncated: npt.NDArray[np.bool_]
    errors: dict[int, str]


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
    return Loaded(tokenizer=Tokenizer.load(files.tokenizer), engine=engine)


class Encoder:
    """E5 vectors without Spark: the same code that runs inside a Spark worker.

    Windows of texts are tokenised together, sorted by token count, cut into micro-batches under a
    token budget, pooled in fp32, normalised, and put back into the order of the texts.
    """

    def __init__(self, loaded: Loaded, recipe: Recipe, spec: ModelSpec) -> None:
        """Joins a loaded checkpoint with the way its vectors are made; see ``load``."""
        self.recipe = recipe
        self._loaded = loaded
        self._spec = spec

    @classmethod
    def load(
        cls, model: str, *, threads: int | None = None, **options: Unpack[ModelOptions]
    ) -> "Encoder":
        """Returns an encoder of a checkpoint.

        Args:
            model: A checkpoint's name on the hub, or a directory; see ``ModelSpec``.
            threads: CPU threads of the forward pass; by default torch's own choice.
            **options: ``device``, ``precision``, ``prompts`` and more; see ``ModelSpec``.

        Raises:
            ModelError: If the checkpoint is unknown, absent, altered or incomplete.
            OptionError: If an option is wrong.
        """
        spec = model_spec(model, options)
        files = locate(spec)
        check_published(spec, files)
        recipe = describe(spec, files.model)
        loaded = load(files, precision=spec.decided_precision, device=spec.device, threads=threads)
        return cls(loaded, recipe, spec)

    @property
    def dim(self) -> int:
        """Returns the components of a vector."""
        return self.recipe.dim

    def encode(self, texts: Sequence[str], *, role: str, instruction: str | None = None) -> Vectors:
        """Returns one vector for each text, in order: float32, (len(texts), dim).

        An empty text is the prompt alone; texts beyond the token limit are truncated.

        Args:
            texts: Without prompts; they are added here.
            role: ``query`` or ``passage``; E5's vectors are wrong without the right one.
            instruction: The task of a query, for instruct checkpoints only.

        Raises:
            OptionError: If the role is unknown or the instruction missing or not wanted.
            TextError: If a text is no string, or the engine could not take it.
        """
        if isinstance(texts, str):
            raise TextError("texts is one string; encode takes a list of them.")
        for position, each in enumerate(texts):
            if not isinstance(each, str):
                raise TextError(
                    f"texts[{position}] is {type(each).__name__}; encode takes strings only."
                )
        prompt = prompts.prefix(self.recipe.prompts, role, instruction)
        window = self._spec.window
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        for start in range(0, len(texts), window):
            found = self.encode_prompted([prompt + each for each in texts[start : start + window]])
            for position, message in found.errors.items():
                raise TextError(f"texts[{start + position}] could not be encoded: {message}")
            vectors[start : start + window] = found.vectors
        return vectors

    def encode_prompted(self, texts: Sequence[str]) -> Encoding:
        """Returns what became of one window of texts that carry their prompts already.

        A text that makes the tokenizer or the engine raise is isolated by halving; the others get
        their vectors. Lone surrogates are replaced by U+FFFD.
        """
        errors: dict[int, str] = {}
        repaired = [text.repair(each) for each in texts]
        tokens = self._loaded.tokenizer.tokenize(repaired, self.recipe.max_tokens)
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        for rows in micro_batches(tokens.lengths, self._spec.token_budget):
            self._encode_rows(tokens, rows, vectors, errors)
        return Encoding(
            vectors=vectors, n_tokens=tokens.n_tokens, truncated=tokens.truncated, errors=errors
        )

    def _encode_rows(
        self,
        tokens: Tokens,
        rows: npt.NDArray[np.intp],
        vectors: Vectors,
        errors: dict[int, str],
    ) -> None:
        try:
            pooled = self._loaded.engine.pool(
                tokens.padded(rows, self._loaded.tokenizer.pad_id),
                tokens.lengths[rows],
                self.recipe.pooling,
            )
        except Exception as error:  # whatever the engine raises, the other rows must not pay
            if len(rows) == 1:
                errors[int(rows[0])] = f"{type(error).__name__}: {error}"
                return
            for half in np.array_split(rows, 2):
                self._encode_rows(tokens, half, vectors, errors)
            return
        vectors[rows] = normalized(pooled) if self.recipe.normalize else pooled


def normalized(vectors: Vectors) -> Vectors:
    """Returns the vectors with unit L2 norm, as torch's ``normalize``: zero stays zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Vectors = vectors / np.maximum(norms, 1e-12)
    return unit
