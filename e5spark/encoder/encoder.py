"""The encoder: texts in, unit vectors out, in order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import numpy.typing as npt

from e5spark import prompts, text
from e5spark.batching import micro_batches
from e5spark.checkpoint import check_published, locate
from e5spark.encoder.engine import Loaded, Vectors, load
from e5spark.encoder.tokenizer import Tokens
from e5spark.encoder.windows import Window, windows
from e5spark.errors import E5SparkError, OptionError, TextError
from e5spark.models import Recipe
from e5spark.recipe import describe
from e5spark.spec import ModelOptions, ModelSpec, model_spec

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What became of some texts: one row for each text, in order, or for each window of a text.

    Attributes:
        vectors: float32; a row with an error has zeros.  # (rows, dim)
        n_tokens: Tokens before truncation, prompt and special tokens included.  # (rows,)
        truncated: Which rows lost tokens.  # (rows,)
        owner: The text that each row belongs to; ascending.  # (rows,)
        windows: The part of its text that each row holds; empty unless texts are split.
        prompted: Which texts began with a prompt already.  # (texts,)
        errors: Row to message of what could not be encoded.
    """

    vectors: Vectors
    n_tokens: Ints
    truncated: Bools
    owner: Ints
    windows: list[Window]
    prompted: Bools
    errors: dict[int, str]


class Encoder:
    """E5 vectors without Spark: the same code that runs inside a Spark worker.

    Windows of texts are tokenised together, sorted by token count, cut into micro-batches under a
    token budget, pooled in fp32, cut to the dim, normalised, and put back into the order of the
    texts.
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
            OptionError: If an option is wrong, or is for tables only.
        """
        spec = model_spec(model, options)
        if spec.long_text == "split" or spec.output_type != "float32":
            raise OptionError(
                "An Encoder returns one float32 vector for each text; long_text='split' and other "
                "output types are for tables. e5spark.quantize turns vectors into other types."
            )
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

        An empty text is the prompt alone; texts beyond the token limit are truncated, unless the
        encoder was loaded with ``long_text="mean"``.

        Args:
            texts: Without prompts; they are added here.
            role: ``query`` or ``passage``; E5's vectors are wrong without the right one.
            instruction: The task of a query, for instruct checkpoints only.

        Raises:
            OptionError: If the role is unknown or the instruction missing or not wanted.
            TextError: If a text is no string, or could not be encoded.
        """
        if isinstance(texts, str):
            raise TextError("texts is one string; encode takes a list of them.")
        for position, each in enumerate(texts):
            if not isinstance(each, str):
                raise TextError(
                    f"texts[{position}] is {type(each).__name__}; encode takes strings only."
                )
        prefix = prompts.prefix(self.recipe.prompts, role, instruction)
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        for start in range(0, len(texts), self._spec.window):
            window = texts[start : start + self._spec.window]
            found = self.encode_rows(window, [prefix] * len(window))
            for row, message in found.errors.items():
                raise TextError(f"texts[{start + row}] could not be encoded: {message}")
            vectors[start : start + len(window)] = found.vectors
        return vectors

    def encode_rows(self, texts: Sequence[str], prefixes: Sequence[str]) -> Encoding:
        """Returns what became of one window of texts, each with the prefix of its own role.

        A text that makes the engine raise is isolated by halving its micro-batch; the others get
        their vectors. Lone surrogates are replaced by U+FFFD.
        """
        repaired = [text.repair(each) for each in texts]
        prompted = prompts.begins_with_prompt(self.recipe.prompts, repaired)
        if self.recipe.prompted == "keep":
            prefixes = self._kept(repaired, prefixes)
        refused = self._refused(prefixes, prompted)
        if refused:  # an empty text in their place costs next to nothing
            repaired = ["" if row in refused else each for row, each in enumerate(repaired)]
            prefixes = ["" if row in refused else each for row, each in enumerate(prefixes)]
        owner, parts, tokens = self._tokenize(repaired, prefixes)
        errors: dict[int, str] = {}
        vectors = np.zeros((len(owner), self.dim), dtype=np.float32)
        for rows in micro_batches(tokens.lengths, self._spec.token_budget):
            self._encode_batch(tokens, rows, vectors, errors)
        encoding = Encoding(
            vectors=vectors,
            n_tokens=tokens.n_tokens,
            truncated=tokens.truncated,
            owner=owner,
            windows=parts,
            prompted=np.array(prompted, dtype=bool),
            errors=errors,
        )
        if self.recipe.long_text == "mean":
            encoding = _mean(encoding, normalize=self.recipe.normalize)
        for text_row, message in refused.items():
            row = int(np.searchsorted(encoding.owner, text_row))
            encoding.vectors[row], encoding.n_tokens[row] = 0, 0
            encoding.errors[row] = message
        return encoding

    def _kept(self, texts: Sequence[str], prefixes: Sequence[str]) -> list[str]:
        """No prefix for a text that has a prompt to the letter."""
        own = prompts.openings(self.recipe.prompts)
        return [
            "" if own and each.startswith(own) else prefix
            for each, prefix in zip(texts, prefixes, strict=True)
        ]

    def _refused(self, prefixes: Sequence[str], prompted: Sequence[bool]) -> dict[int, str]:
        """Why a text is not encoded: its prompt leaves it no room, or it has one already."""
        tokenizer, recipe = self._loaded.tokenizer, self.recipe
        taken = {each: tokenizer.special_tokens + tokenizer.count(each) for each in set(prefixes)}
        refused = {}
        for row, (prefix, has_prompt) in enumerate(zip(prefixes, prompted, strict=True)):
            if taken[prefix] + 2 * recipe.overlap >= recipe.max_tokens:
                refused[row] = (
                    f"The prompt and the special tokens take {taken[prefix]} of max_tokens "
                    f"{recipe.max_tokens}; too few are left for a text, with overlap "
                    f"{recipe.overlap}."
                )
            elif has_prompt and recipe.prompted == "refuse":
                refused[row] = "The text begins with a prompt already, and prompted is 'refuse'."
        return refused

    def _tokenize(
        self, texts: Sequence[str], prefixes: Sequence[str]
    ) -> tuple[Ints, list[Window], Tokens]:
        """One row for each text, or for each window of it: owners, parts and tokens."""
        if self.recipe.long_text != "truncate":
            return self._windows(texts, prefixes)
        whole = [prefix + each for prefix, each in zip(prefixes, texts, strict=True)]
        tokens = self._loaded.tokenizer.tokenize(whole, self.recipe.max_tokens)
        return np.arange(len(texts), dtype=np.int32), [], tokens

    def _windows(
        self, texts: Sequence[str], prefixes: Sequence[str]
    ) -> tuple[Ints, list[Window], Tokens]:
        tokenizer = self._loaded.tokenizer
        room = self.recipe.max_tokens - tokenizer.special_tokens
        capacities = {each: room - tokenizer.count(each) for each in set(prefixes)}
        found: list[list[Window]] = [[] for _ in texts]
        pending: Sequence[int] = range(len(texts))
        # A word that is cut in two can have more tokens than it had as one. Windows that do not
        # fit as the texts they are get smaller, so that nothing is lost.
        for slack in (0, 2, 8, 32):
            for row in pending:
                found[row] = windows(
                    texts[row],
                    tokenizer.spans(texts[row]),
                    capacity=max(capacities[prefixes[row]] - slack, 1),
                    overlap=self.recipe.overlap,
                )
            owner = np.repeat(np.arange(len(texts), dtype=np.int32), [len(each) for each in found])
            parts = [part for each in found for part in each]
            whole = [
                prefix + each[part.start : part.end]
                for prefix, each, own in zip(prefixes, texts, found, strict=True)
                for part in own
            ]
            tokens = tokenizer.tokenize(whole, self.recipe.max_tokens)
            pending = [int(row) for row in np.unique(owner[tokens.truncated])]
            if not pending:
                break
        return owner, parts, tokens

    def _encode_batch(
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
        except E5SparkError:
            raise  # the engine itself is broken, not a text
        except Exception as error:  # whatever a text makes it raise, the other rows must not pay
            if len(rows) == 1:
                errors[int(rows[0])] = f"{type(error).__name__}: {error}"
                return
            for half in np.array_split(rows, 2):
                self._encode_batch(tokens, half, vectors, errors)
            return
        finite = np.asarray(np.isfinite(pooled).all(axis=1))
        for row in rows[~finite]:
            errors[int(row)] = "The engine returned a vector that is not finite."
        cut = np.where(finite[:, None], pooled[:, : self.dim], 0)
        vectors[rows] = normalized(cut) if self.recipe.normalize else cut


def normalized(vectors: Vectors) -> Vectors:
    """Returns the vectors with unit L2 norm, as torch's ``normalize``: zero stays zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Vectors = vectors / np.maximum(norms, 1e-12)
    return unit


def _mean(found: Encoding, *, normalize: bool) -> Encoding:
    """One row for each text: its windows' vectors, weighted by their tokens."""
    texts = len(found.prompted)
    first = np.searchsorted(found.owner, np.arange(texts))
    weighted = found.vectors.astype(np.float64) * found.n_tokens[:, None]
    tokens = np.add.reduceat(found.n_tokens, first) if texts else found.n_tokens
    sums = np.add.reduceat(weighted, first) if texts else weighted
    means = (sums / np.maximum(tokens, 1)[:, None]).astype(np.float32)
    return Encoding(
        vectors=normalized(means) if normalize else means,
        n_tokens=tokens.astype(np.int32),
        truncated=np.logical_or.reduceat(found.truncated, first) if texts else found.truncated,
        owner=np.arange(texts, dtype=np.int32),
        windows=[],
        prompted=found.prompted,
        errors={int(found.owner[row]): message for row, message in found.errors.items()},
    )
