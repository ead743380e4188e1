"""The encoder: texts in, unit vectors out, in order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Unpack

import numpy as np
import numpy.typing as npt

from e5spark import prompts, text
from e5spark.batching import micro_batches
from e5spark.checkpoint import Files, check_published, locate
from e5spark.encoder.tokenizer import Tokenizer, Tokens, appends_eos
from e5spark.encoder.windows import Window, windows
from e5spark.errors import OptionError, TextError
from e5spark.models import Pooling, Recipe
from e5spark.recipe import describe
from e5spark.spec import ModelOptions, ModelSpec, model_spec

Vectors = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int32]


class Engine(Protocol):
    """What runs a checkpoint: padded token ids in, one pooled vector a row out."""

    def pool(
        self, ids: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], pooling: Pooling
    ) -> Vectors:
        """Returns one float32 vector for each row, not normalised.  # (rows, hidden)."""
        ...


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
            prefixes = [
                "" if has else prefix for has, prefix in zip(prompted, prefixes, strict=True)
            ]
        self._check_room(prefixes)
        if self.recipe.long_text == "truncate":
            owner = np.arange(len(texts), dtype=np.int32)
            parts: list[Window] = []
            whole = [prefix + each for prefix, each in zip(prefixes, repaired, strict=True)]
            tokens = self._loaded.tokenizer.tokenize(whole, self.recipe.max_tokens)
        else:
            owner, parts, tokens = self._windows(repaired, prefixes)
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
        if self.recipe.prompted == "refuse":
            _refuse(encoding)
        return encoding

    def _check_room(self, prefixes: Sequence[str]) -> None:
        tokenizer = self._loaded.tokenizer
        for prefix in set(prefixes):
            taken = tokenizer.special_tokens + tokenizer.count(prefix)
            if taken >= self.recipe.max_tokens:
                raise OptionError(
                    f"max_tokens is {self.recipe.max_tokens}, and the prompt {prefix!r} takes "
                    f"{taken} with the special tokens: nothing of a text is left."
                )

    def _windows(
        self, texts: Sequence[str], prefixes: Sequence[str]
    ) -> tuple[Ints, list[Window], Tokens]:
        """Every window of every text, with its prompt: owners, parts and tokens."""
        capacities = self._capacities(prefixes)
        found: list[list[Window]] = [[] for _ in texts]
        pending: Sequence[int] = range(len(texts))
        # A word that is cut in two can have more tokens than it had as one. Windows that do not
        # fit as the texts they are get smaller, so that nothing is lost.
        for slack in (0, 2, 8, 32):
            for row in pending:
                found[row] = windows(
                    texts[row],
                    self._loaded.tokenizer.spans(texts[row]),
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
            tokens = self._loaded.tokenizer.tokenize(whole, self.recipe.max_tokens)
            pending = [int(row) for row in np.unique(owner[tokens.truncated])]
            if not pending:
                break
        return owner, parts, tokens

    def _capacities(self, prefixes: Sequence[str]) -> dict[str, int]:
        """Tokens of the text itself that a window holds, by prefix."""
        tokenizer = self._loaded.tokenizer
        room = self.recipe.max_tokens - tokenizer.special_tokens
        capacities = {prefix: room - tokenizer.count(prefix) for prefix in set(prefixes)}
        smallest = min(capacities.values(), default=room)
        if smallest <= 2 * self.recipe.overlap:
            raise OptionError(
                f"max_tokens {self.recipe.max_tokens} leaves {smallest} tokens of a text beside "
                f"its prompt and the special tokens; overlap {self.recipe.overlap} must be less "
                "than half of that."
            )
        return capacities

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
        except Exception as error:  # whatever the engine raises, the other rows must not pay
            if len(rows) == 1:
                errors[int(rows[0])] = f"{type(error).__name__}: {error}"
                return
            for half in np.array_split(rows, 2):
                self._encode_batch(tokens, half, vectors, errors)
            return
        cut = pooled[:, : self.dim]
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


def _refuse(found: Encoding) -> None:
    for row in np.flatnonzero(found.prompted[found.owner]):
        found.vectors[row] = 0
        found.errors.setdefault(
            int(row), "The text begins with a prompt already, and prompted is 'refuse'."
        )
