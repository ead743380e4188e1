"""Texts to token ids in flat buffers, truncated as Hugging Face truncates them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from e5spark.encoder.batching import Batch, Ints, Longs
from e5spark.encoder.packages import require
from e5spark.model.architecture import read_config
from e5spark.model.vocabulary import readable_tokenizer

# Texts up to this length are tokenised completely, longer ones only at their beginning: a
# tokenizer reads 4 MB/s, so a 200 MB document would take a minute and gigabytes for its first 512
# tokens.
EXACT_CHARS = 1 << 16
# Number of tokens that may be wrong at the end of a beginning: a cut inside a word can change its
# tokens, and a WordPiece word has at most 100 characters (max_input_chars_per_word).
_MARGIN = 128
# The tokenizer's own objects and Python's lists take about 130 bytes for a token, arrays four: so
# many characters are tokenised at once, for 60 MB instead of 2 GB for the windows of a 50 MB text.
_PART_CHARS = 1 << 21
# A letter that hardly any vocabulary has, and no normalizer removes: a sign of cuneiform.
_UNKNOWN = "\U00012000"
_SPACE_BEFORE = re.compile(r"\s\S*\Z")


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The tokens of some texts, end to end.

    Attributes:
        ids: Token ids of all texts, special tokens included.  # (sum of lengths,)
        offsets: First token of each text, then the number of tokens.  # (texts + 1,)
        n_tokens: Tokens of each text before truncation, special tokens included; estimated from
            the beginning for a text of more than ``EXACT_CHARS`` characters.  # (texts,)
    """

    ids: Ints
    offsets: Longs
    n_tokens: Ints

    @property
    def lengths(self) -> Longs:
        """Returns the number of tokens of each text after truncation.  # (texts,)."""
        return np.diff(self.offsets)

    @property
    def truncated(self) -> npt.NDArray[np.bool_]:
        """Returns which texts lost tokens to truncation.  # (texts,)."""
        return self.lengths < self.n_tokens

    def batch(self, rows: npt.NDArray[np.intp]) -> Batch:
        """Returns the tokens of some texts as the batch of one forward pass.

        Args:
            rows: Indices of the texts, in the order of the batch.
        """
        lengths = self.lengths[rows]
        starts = np.cumsum(lengths) - lengths  # of each row in the batch
        source = np.arange(int(lengths.sum())) + np.repeat(self.offsets[rows] - starts, lengths)
        return Batch(ids=self.ids[source], lengths=lengths)


@dataclass(frozen=True, kw_only=True)
class Spans:
    """The spans of a text's tokens, in characters; without special tokens.

    Attributes:
        starts: First character of each token.  # (tokens,)
        ends: The character after the last one of each token.  # (tokens,)
        words: The number of the pre-tokenizer's word that each token belongs to.  # (tokens,)
    """

    starts: Longs
    ends: Longs
    words: Longs


class Tokenizer:
    """A checkpoint's tokenizer, which truncates as transformers does but returns flat arrays."""

    def __init__(
        self, backend: tokenizers.Tokenizer, *, pad_id: int, eos_id: int | None = None
    ) -> None:
        """Wraps a backend, and switches its truncation and padding off.

        Args:
            backend: The tokenizer that the checkpoint's files define.
            pad_id: The padding token.
            eos_id: The token to append to every text, unless the backend does so itself.
        """
        backend.no_truncation()
        backend.no_padding()
        self.pad_id = pad_id
        self._backend = backend
        backend.encode(_UNKNOWN)  # fails now, and not in a task, if no token stands for it
        encoded = backend.encode("a")
        specials = encoded.special_tokens_mask[::-1].index(0)
        suffix = encoded.ids[len(encoded.ids) - specials :]
        self._appended = [] if eos_id is None or eos_id in suffix else [eos_id]
        self._suffix = np.asarray(suffix + self._appended, dtype=np.int32)

    @classmethod
    def load(cls, directory: Path, *, appends_eos: bool = False) -> "Tokenizer":
        """Returns the tokenizer of a directory, as transformers' AutoTokenizer reads it.

        Args:
            directory: The directory of the tokenizer's files.
            appends_eos: Whether texts end in the end-of-sequence token, as E5-mistral's do
                (its card appends it by hand).

        Raises:
            ModelError: If the directory has no tokenizer that can be read.
            OptionError: If transformers is not installed.
        """
        require(("transformers",), extra="torch", purpose="The tokenizer of a checkpoint")
        from transformers import AutoTokenizer

        with readable_tokenizer(directory):
            loaded = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
            eos = int(loaded.eos_token_id) if appends_eos else None
            # A copy, because the object that transformers returns keeps its own truncation state.
            backend = tokenizers.Tokenizer.from_str(loaded.backend_tokenizer.to_str())
            return cls(backend, pad_id=padding_id(loaded), eos_id=eos)

    @classmethod
    def read(cls, path: Path, *, pad_id: int) -> "Tokenizer":
        """Returns the tokenizer of a prepared model, without transformers.

        Args:
            path: tokenizer.json.
            pad_id: The padding token.
        """
        with readable_tokenizer(path.parent):
            return cls(tokenizers.Tokenizer.from_file(str(path)), pad_id=pad_id)

    @property
    def special_tokens(self) -> int:
        """Returns the number of special tokens that are added to every text."""
        return self._backend.num_special_tokens_to_add(is_pair=False) + len(self._appended)

    def count(self, text: str) -> int:
        """Returns the number of tokens of a short text, without special tokens."""
        return len(self._backend.encode(text, add_special_tokens=False).ids)

    def tokenize(self, texts: Sequence[str], max_tokens: int) -> Tokens:
        """Returns the tokens of the texts, in order, each truncated to ``max_tokens``.

        As in transformers, truncation removes content and keeps the special tokens.

        Args:
            texts: Texts with their prompts.
            max_tokens: Maximum number of tokens of one text, special tokens included.
        """
        parts = [self._tokenize(part, max_tokens) for part in _parts(texts)]
        n_tokens = np.concatenate([counts for _, counts in parts])
        offsets = np.zeros(len(texts) + 1, dtype=np.int64)
        np.cumsum(np.minimum(n_tokens, max_tokens), out=offsets[1:])
        ids = np.concatenate([flat for flat, _ in parts])
        return Tokens(ids=ids, offsets=offsets, n_tokens=n_tokens)

    def _tokenize(self, texts: Sequence[str], max_tokens: int) -> tuple[Ints, Ints]:
        """The ids of some texts, truncated and end to end, and ``n_tokens`` of each."""
        beginnings = [beginning(text, max(EXACT_CHARS, 16 * max_tokens)) for text in texts]
        encoded = self._backend.encode_batch_fast(beginnings, add_special_tokens=True)
        full = [encoding.ids + self._appended for encoding in encoded]
        n_tokens = np.fromiter(map(len, full), dtype=np.int32, count=len(full))
        for row, (text, start) in enumerate(zip(texts, beginnings, strict=True)):
            if len(start) < len(text):
                full[row], estimate = self._extended(text, start, full[row], max_tokens)
                n_tokens[row] = estimate
        ends = np.cumsum(np.minimum(n_tokens, max_tokens), dtype=np.int64)
        cut = (ids[:max_tokens] for ids in full)
        count = int(ends[-1]) if len(ends) else 0
        flat = np.fromiter(chain.from_iterable(cut), dtype=np.int32, count=count)
        if len(self._suffix):
            for end in ends[n_tokens > max_tokens]:
                flat[end - len(self._suffix) : end] = self._suffix
        return flat, n_tokens

    def spans(self, text: str) -> Spans:
        """Returns the spans of a text's tokens; a long text is tokenised in pieces."""
        starts, ends, words = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], []
        begin, word = 0, 0
        while begin < len(text):
            piece = beginning(text[begin : begin + EXACT_CHARS + 1], EXACT_CHARS)
            encoding = self._backend.encode(piece, add_special_tokens=False)
            offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) + begin
            starts.append(offsets[:, 0])
            ends.append(offsets[:, 1])
            words.append(np.array(encoding.word_ids, dtype=np.int64) + word)
            word += len(piece)  # a piece has at most as many words as characters
            begin += len(piece)
        return Spans(
            starts=np.concatenate(starts),
            ends=np.concatenate(ends),
            words=np.concatenate(words) if words else np.zeros(0, np.int64),
        )

    def _extended(
        self, text: str, start: str, ids: list[int], max_tokens: int
    ) -> tuple[list[int], int]:
        """The ids of a beginning long enough for ``max_tokens``, and the full text's estimate."""
        while len(ids) < max_tokens + _MARGIN and len(start) < len(text):
            start = beginning(text, 4 * len(start))
            ids = self._backend.encode(start).ids + self._appended
        return ids, round(len(ids) * len(text) / len(start))


def _parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """The texts in runs of about ``_PART_CHARS`` characters; one run if there are no texts."""
    start = size = 0
    for number, text in enumerate(texts):
        if size >= _PART_CHARS:
            yield texts[start:number]
            start, size = number, 0
        size += min(len(text), EXACT_CHARS)
    yield texts[start:]


def padding_id(loaded: Any) -> int:  # noqa: ANN401  # transformers is not typed
    """Returns the padding token of a tokenizer that transformers loaded.

    A tokenizer.json without settings does not say which of its tokens is for padding; BERT's and
    XLM-R's are ``[PAD]`` and ``<pad>``. A decoder without one is padded with its end of sequence.
    """
    backend = loaded.backend_tokenizer
    named = (backend.token_to_id(token) for token in ("[PAD]", "<pad>"))
    for token in (loaded.pad_token_id, loaded.eos_token_id, *named):
        if token is not None:
            return int(token)
    return 0


def appends_eos(directory: Path) -> bool:
    """Returns whether the checkpoint is a decoder, whose vector is its final token's."""
    return read_config(directory).architecture.appends_eos


def beginning(text: str, limit: int) -> str:
    """Returns the first ``limit`` characters, up to a white space if the second half has any.

    A text that is not longer is returned unchanged.
    """
    if len(text) <= limit:
        return text
    space = _SPACE_BEFORE.search(text, limit // 2, limit)
    return text[: space.start()] if space else text[:limit]
