"""Texts to token ids in flat buffers, truncated as Hugging Face truncates them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers

from e5spark.errors import ModelError

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The tokens of some texts, end to end.

    Attributes:
        ids: Token ids of all texts, special tokens included.  # (sum of lengths,)
        offsets: Where each text begins; one more than there are texts.  # (texts + 1,)
        n_tokens: Tokens of each text before truncation, special tokens included.  # (texts,)
    """

    ids: Ints
    offsets: npt.NDArray[np.int64]
    n_tokens: Ints

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Returns the tokens of each text that are left after truncation."""
        return np.diff(self.offsets)

    @property
    def truncated(self) -> npt.NDArray[np.bool_]:
        """Returns which texts lost tokens."""
        return self.lengths < self.n_tokens

    def padded(self, rows: npt.NDArray[np.intp], pad_id: int) -> npt.NDArray[np.int64]:
        """Returns the ids of some texts, each row filled up on the right.  # (rows, longest)."""
        lengths = self.lengths[rows]
        columns = np.arange(int(lengths.max(initial=0)))
        where = self.offsets[rows][:, None] + columns  # (rows, longest)
        inside = columns < lengths[:, None]
        return np.where(inside, self.ids[np.minimum(where, len(self.ids) - 1)], pad_id).astype(
            np.int64
        )


class Tokenizer:
    """A checkpoint's tokenizer, with the truncation of transformers and none of its objects."""

    def __init__(self, backend: tokenizers.Tokenizer, *, pad_id: int) -> None:
        """Takes over the backend: its truncation and padding are switched off."""
        backend.no_truncation()
        backend.no_padding()
        self.pad_id = pad_id
        self._backend = backend
        mask = backend.encode("a").special_tokens_mask
        self._prefix = mask.index(0)
        suffix = mask[::-1].index(0)
        self._suffix = np.asarray(backend.encode("a").ids[len(mask) - suffix :], dtype=np.int32)

    @classmethod
    def load(cls, directory: Path) -> "Tokenizer":
        """Returns the tokenizer of a directory, as transformers' AutoTokenizer reads it.

        Raises:
            ModelError: If the directory has none that can be read.
        """
        from transformers import AutoTokenizer

        try:
            loaded = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"{directory} has no tokenizer that can be read: {error}") from error
        return cls(loaded.backend_tokenizer, pad_id=int(loaded.pad_token_id))

    def tokenize(self, texts: Sequence[str], max_tokens: int) -> Tokens:
        """Returns the tokens of the texts, in order, each cut to ``max_tokens``.

        As in transformers, the cut takes content and leaves the special tokens.

        Args:
            texts: Prompt included.
            max_tokens: Most tokens of one text, special tokens included.
        """
        encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=True)
        full = [encoding.ids for encoding in encoded]
        n_tokens = np.fromiter(map(len, full), dtype=np.int32, count=len(full))
        kept = np.minimum(n_tokens, max_tokens)
        offsets = np.zeros(len(full) + 1, dtype=np.int64)
        np.cumsum(kept, out=offsets[1:])
        cut = (ids[:max_tokens] for ids in full)
        flat = np.fromiter(chain.from_iterable(cut), dtype=np.int32, count=int(offsets[-1]))
        for row in np.flatnonzero(n_tokens > max_tokens):
            end = offsets[row + 1]
            flat[end - len(self._suffix) : end] = self._suffix
        return Tokens(ids=flat, offsets=offsets, n_tokens=n_tokens)
