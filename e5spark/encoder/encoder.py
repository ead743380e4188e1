"""The encoder: texts in, unit vectors out, in order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Unpack

import numpy as np
import numpy.typing as npt

from e5spark.encoder.batching import Indices, Ints, micro_batches
from e5spark.encoder.engine import Engine, LoadedModel, Vectors
from e5spark.encoder.loading import load
from e5spark.encoder.long_text import Window
from e5spark.encoder.sort_window import SortWindow, tokenize
from e5spark.encoder.tokenizer import Tokens
from e5spark.errors import OptionError, TextError
from e5spark.model import prompts
from e5spark.model.registry import Recipe
from e5spark.model.resolve import resolve
from e5spark.model.spec import ModelOptions, ModelSpec, model_spec

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """The encoding of some texts, in order: one row per text, or per window of a text.

    Attributes:
        vectors: float32; zeros in a row with an error.  # (rows, dim)
        n_tokens: Tokens before truncation, prompt and special tokens included.  # (rows,)
        truncated: Which rows lost tokens.  # (rows,)
        owner: The text that each row belongs to; ascending.  # (rows,)
        windows: The part of its text that each row holds; empty unless texts are split.
        already_prompted: Which texts began with a prompt already.  # (texts,)
        errors: Row number to message, for rows that could not be encoded.
    """

    vectors: Vectors
    n_tokens: Ints
    truncated: Bools
    owner: Ints
    windows: list[Window]
    already_prompted: Bools
    errors: dict[int, str]

    def take(self, texts: Indices) -> "Encoding":
        """Returns the encoding of the texts with these numbers, in this order.

        Args:
            texts: Numbers of texts of this encoding; a number may occur several times.
        """
        if np.array_equal(texts, np.arange(len(self.already_prompted))):
            return self
        sizes = np.bincount(self.owner, minlength=len(self.already_prompted))[texts]
        first = np.searchsorted(self.owner, texts)
        starts = np.cumsum(sizes) - sizes
        rows = np.arange(int(sizes.sum())) + np.repeat(first - starts, sizes)
        return Encoding(
            vectors=self.vectors[rows],
            n_tokens=self.n_tokens[rows],
            truncated=self.truncated[rows],
            owner=np.repeat(np.arange(len(texts), dtype=np.int32), sizes),
            windows=[self.windows[row] for row in rows] if self.windows else [],
            already_prompted=self.already_prompted[texts],
            errors={
                row: self.errors[source]
                for row, source in enumerate(rows.tolist())
                if source in self.errors
            },
        )


def concatenated(encodings: Sequence[Encoding], *, dim: int) -> Encoding:
    """Returns the encoding of the texts of several encodings, in order.

    Args:
        encodings: Encodings of the same recipe; there may be none.
        dim: The dim of the recipe, for an encoding without texts.
    """
    if not encodings:
        flags, numbers = np.zeros(0, dtype=bool), np.zeros(0, dtype=np.int32)
        return Encoding(
            vectors=np.zeros((0, dim), dtype=np.float32),
            n_tokens=numbers,
            truncated=flags,
            owner=numbers,
            windows=[],
            already_prompted=flags,
            errors={},
        )
    texts = np.cumsum([0, *(len(part.already_prompted) for part in encodings)])
    rows = np.cumsum([0, *(len(part.owner) for part in encodings)]).tolist()
    return Encoding(
        vectors=np.concatenate([part.vectors for part in encodings]),
        n_tokens=np.concatenate([part.n_tokens for part in encodings]),
        truncated=np.concatenate([part.truncated for part in encodings]),
        owner=np.concatenate(
            [part.owner + first for part, first in zip(encodings, texts[:-1], strict=True)]
        ).astype(np.int32),
        windows=[window for part in encodings for window in part.windows],
        already_prompted=np.concatenate([part.already_prompted for part in encodings]),
        errors={
            first + row: message
            for part, first in zip(encodings, rows[:-1], strict=True)
            for row, message in part.errors.items()
        },
    )


class Encoder:
    """E5 vectors without Spark: the code that also runs inside a Spark worker.

    The texts of a sort window are tokenised together, sorted by token count, cut into micro-batches
    under a token budget, pooled in fp32, cut to the dim, normalised, and put back into the order of
    the input.
    """

    def __init__(self, loaded: LoadedModel, recipe: Recipe, spec: ModelSpec) -> None:
        """Wraps a loaded checkpoint; ``load`` loads one first.

        Args:
            loaded: The tokenizer and the engine.
            recipe: How vectors are computed: prompts, pooling, limits.
            spec: The options; only the token budget and the sort window are read.
        """
        self.recipe = recipe
        self._loaded = loaded
        self._spec = spec

    @classmethod
    def load(
        cls, model: str, *, threads: int | None = None, **options: Unpack[ModelOptions]
    ) -> "Encoder":
        """Returns an encoder of a checkpoint.

        Args:
            model: A checkpoint's name on the hub, a directory or a jar; see ``ModelSpec``.
            threads: CPU threads of the forward pass; None leaves the engine's own choice.
            **options: ``device``, ``precision``, ``prompts`` and more; see ``ModelSpec``.

        Raises:
            ModelError: If the checkpoint is unknown, absent, altered or incomplete.
            OptionError: If an option is wrong or only for tables, or an engine is not installed.
        """
        spec = model_spec(model, options)
        if spec.long_text == "split" or spec.output_type != "float32":
            raise OptionError(
                "An Encoder returns one float32 vector per text; long_text='split' and other "
                "output types are for tables. e5spark.model.output_type converts vectors."
            )
        if spec.text_deadline is not None or spec.max_characters is not None:
            raise OptionError(
                "text_deadline and max_characters are for tables, which have a status for each row."
            )
        resolved = resolve(spec)
        spec = resolved.spec
        loaded = load(
            resolved.files,
            engine=spec.engine,
            precision=spec.precision,
            device=spec.device,
            threads=threads,
        )
        return cls(loaded, resolved.recipe, spec)

    @property
    def engine(self) -> Engine:
        """Returns the engine that runs the checkpoint."""
        return self._loaded.engine

    @property
    def dim(self) -> int:
        """Returns the number of components of a vector."""
        return self.recipe.dim

    @property
    def token_budget(self) -> int:
        """Returns the most tokens in one forward pass, padding included."""
        return self._spec.token_budget or self._loaded.engine.token_budget

    def encode(self, texts: Sequence[str], *, role: str, instruction: str | None = None) -> Vectors:
        """Returns one vector per text, in order: float32, (len(texts), dim).

        An empty text gives the vector of the prompt alone. Texts beyond the token limit are
        truncated, unless the encoder was loaded with ``long_text="mean"``.

        Args:
            texts: Texts without prompts, which are added here; never None.
            role: ``query`` or ``passage``; with the wrong role E5's vectors are wrong.
            instruction: The task of a query, for instruct checkpoints only.

        Raises:
            OptionError: If the role is unknown, or the instruction is missing or not allowed.
            TextError: If a text is not a string, or could not be encoded.
        """
        if isinstance(texts, str):
            raise TextError("texts is a string; encode takes a list of strings.")
        for position, text in enumerate(texts):
            if not isinstance(text, str):
                raise TextError(
                    f"texts[{position}] is {type(text).__name__}; encode takes strings only."
                )
        prefix = prompts.prefix(self.recipe.prompts, role, instruction)
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        for start in range(0, len(texts), self._spec.sort_window):
            rows = texts[start : start + self._spec.sort_window]
            encoding = self.encode_rows(rows, [prefix] * len(rows))
            for row, message in encoding.errors.items():
                raise TextError(f"texts[{start + row}] could not be encoded: {message}")
            vectors[start : start + len(rows)] = encoding.vectors
        return vectors

    def encode_rows(self, texts: Sequence[str], prefixes: Sequence[str]) -> Encoding:
        """Returns the encoding of one sort window of texts.

        If a text makes the engine raise, its micro-batch is halved until the text is alone; the
        other texts get their vectors. Lone surrogates are replaced by U+FFFD.

        Args:
            texts: Texts without prompts.
            prefixes: The prefix of each text.
        """
        return self.encode_tokens(self.tokenize(texts, prefixes))

    def prepare(
        self,
        texts: Sequence[str],
        prefixes: Sequence[str],
        on_batch: Callable[[float, int], None] | None = None,
    ) -> Callable[[], Encoding]:
        """Returns a function that encodes a sort window of texts, which are tokenised now.

        A thread can prepare the next sort window while the engine runs this one.

        Args:
            texts: Texts without prompts.
            prefixes: The prefix of each text.
            on_batch: Is told, after each micro-batch, its share of the window and its tokens.
        """
        return partial(self.encode_tokens, self.tokenize(texts, prefixes), on_batch)

    def tokenize(self, texts: Sequence[str], prefixes: Sequence[str]) -> SortWindow:
        """Returns a sort window of texts, tokenised for ``encode_tokens``.

        ``encode_rows`` consists of this and ``encode_tokens``.
        """
        return tokenize(self._loaded.tokenizer, self.recipe, texts, prefixes)

    def encode_tokens(
        self, sort_window: SortWindow, on_batch: Callable[[float, int], None] | None = None
    ) -> Encoding:
        """Returns the encoding of a tokenised sort window; see ``encode_rows``."""
        engine, tokens = self._loaded.engine, sort_window.tokens
        errors: dict[int, str] = {}
        vectors = np.zeros((len(sort_window.owner), self.dim), dtype=np.float32)
        batches = micro_batches(
            tokens.lengths, self.token_budget, packed=engine.packed, step=engine.step
        )
        self._encode_batches(tokens, batches, vectors, errors, on_batch)
        encoding = Encoding(
            vectors=vectors,
            n_tokens=tokens.n_tokens.copy(),
            truncated=tokens.truncated,
            owner=sort_window.owner,
            windows=sort_window.windows,
            already_prompted=sort_window.already_prompted,
            errors=errors,
        )
        if self.recipe.long_text == "mean":
            encoding = _mean(encoding, normalize=self.recipe.normalize)
        for number, message in sort_window.refused.items():
            row = int(np.searchsorted(encoding.owner, number))
            encoding.vectors[row], encoding.n_tokens[row] = 0, 0
            encoding.errors[row] = message
        return encoding.take(sort_window.inverse)

    def _encode_batches(
        self,
        tokens: Tokens,
        batches: Sequence[Indices],
        vectors: Vectors,
        errors: dict[int, str],
        on_batch: Callable[[float, int], None] | None = None,
    ) -> None:
        """Fills in the vectors of the batches' rows; bisects a batch that cannot be encoded."""
        halves: list[Indices] = []
        outputs = self._loaded.engine.run(map(tokens.batch, batches), self.recipe.pooling)
        for rows, pooled in zip(batches, outputs, strict=True):
            if not isinstance(pooled, Exception):
                finite = np.asarray(np.isfinite(pooled).all(axis=1))
                for row in rows[~finite]:
                    errors[int(row)] = "The engine returned a vector that is not finite."
                cut = pooled[:, : self.dim]
                if not finite.all():
                    cut = np.where(finite[:, None], cut, 0)
                vectors[rows] = normalized(cut) if self.recipe.normalize else cut
                if on_batch is not None:
                    on_batch(len(rows) / len(vectors), int(tokens.lengths[rows].sum()))
            elif len(rows) == 1:
                errors[int(rows[0])] = f"{type(pooled).__name__}: {pooled}"
            else:  # some row is at fault; the others must get their vectors
                halves += np.array_split(rows, 2)
        if halves:
            self._encode_batches(tokens, halves, vectors, errors, on_batch)


def normalized(vectors: Vectors) -> Vectors:
    """Returns the vectors with unit L2 norm, as torch's ``normalize`` does: zero stays zero."""
    # numpy.linalg.norm makes an array of squares first, and takes 1.5 times as long.
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    unit: Vectors = vectors / np.maximum(norms, 1e-12)[:, None]
    return unit


def _mean(encoding: Encoding, *, normalize: bool) -> Encoding:
    """One row per text: the mean of its windows' vectors, weighted by their tokens."""
    texts = len(encoding.already_prompted)
    first = np.searchsorted(encoding.owner, np.arange(texts))
    weighted = encoding.vectors.astype(np.float64) * encoding.n_tokens[:, None]
    tokens = np.add.reduceat(encoding.n_tokens, first) if texts else encoding.n_tokens
    sums = np.add.reduceat(weighted, first) if texts else weighted
    means = (sums / np.maximum(tokens, 1)[:, None]).astype(np.float32)
    return Encoding(
        vectors=normalized(means) if normalize else means,
        n_tokens=tokens.astype(np.int32),
        truncated=(
            np.logical_or.reduceat(encoding.truncated, first) if texts else encoding.truncated
        ),
        owner=np.arange(texts, dtype=np.int32),
        windows=[],
        already_prompted=encoding.already_prompted,
        errors={int(encoding.owner[row]): message for row, message in encoding.errors.items()},
    )
