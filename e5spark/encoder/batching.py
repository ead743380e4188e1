"""Micro-batches from token counts: pure numpy, no texts and no tensors."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from e5spark.errors import OptionError

Indices = npt.NDArray[np.intp]
Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The tokens of one forward pass: rows end to end, without padding.

    Attributes:
        ids: Token ids of all rows, special tokens included.  # (sum of lengths,)
        lengths: Tokens of each row.  # (rows,)
    """

    ids: Ints
    lengths: Longs

    def check_ids(self, vocabulary: int) -> None:
        """Raises unless the checkpoint has an embedding of every token.

        On a GPU, an id beyond the table would make the device unusable for the whole process.

        Args:
            vocabulary: Number of tokens that the checkpoint embeds.

        Raises:
            IndexError: If an id is not below that number.
        """
        highest = int(self.ids.max(initial=0))
        if highest >= vocabulary:
            raise IndexError(
                f"token id {highest} is out of range: the checkpoint embeds {vocabulary} tokens; "
                "use the tokenizer that belongs to it."
            )

    def padded(self, pad_id: int, *, step: int = 1) -> Longs:
        """Returns the ids with each row padded on the right: int64.  # (rows, width).

        Args:
            pad_id: The padding token.
            step: See ``padded_width``.
        """
        width = padded_width(int(self.lengths.max(initial=0)), step)
        is_token = np.arange(width) < self.lengths[:, None]
        ids = np.full(is_token.shape, pad_id, dtype=np.int64)
        ids[is_token] = self.ids
        return ids


def micro_batches(
    lengths: npt.ArrayLike, token_budget: int, *, packed: bool = False, step: int = 1
) -> list[Indices]:
    """Returns the rows of each forward pass: every row once, longest rows first.

    Rows are sorted by token count (rows of equal count keep their order), then cut greedily so that
    rows times width, padding included, stays within the budget. A row longer than the budget gets a
    batch of its own. The longest rows come first, so that a budget too large for the memory fails
    at once and not after hours.

    Args:
        lengths: Tokens per row, special tokens and prompt included; at least 1 each.
        token_budget: Maximum number of tokens in one forward pass, padding included.
        packed: Whether the engine needs no padding, so that only the rows' own tokens count.
        step: See ``padded_width``. All full batches of one width have the same number of rows,
            so that there are fewer shapes than lengths.

    Raises:
        OptionError: If the budget is not positive.
    """
    if token_budget < 1:
        raise OptionError(f"token_budget is {token_budget}; it must be at least 1.")
    counts = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-counts, kind="stable")
    ends = np.cumsum(counts[order])
    batches = []
    start = 0
    while start < len(order):
        before = int(ends[start] - counts[order[start]])
        if packed:
            rows = int(np.searchsorted(ends, before + token_budget, "right")) - start
        else:
            rows = token_budget // max(padded_width(int(counts[order[start]]), step), 1)
        batches.append(order[start : start + max(1, rows)])
        start += max(1, rows)
    return batches


def padded_width(longest: int, step: int) -> int:
    """Returns the width of a padded batch: its longest row, rounded up to one of a few widths.

    Args:
        longest: Tokens of the longest row.
        step: With 1 the width is the longest row. Otherwise widths are at most this far apart up to
            128 tokens, and closer for short rows: a quarter of the power of two below them. Beyond,
            an eighth of it. With 16: 10 or 12 for a row of 10 or 11 tokens, 80 for one of 65, 288
            for one of 257.
    """
    if step == 1:
        return longest
    octave = 1 << max((longest - 1).bit_length() - 1, 0)
    step = max(min(step, octave // 4), octave // 8, 1)
    return -(-longest // step) * step
