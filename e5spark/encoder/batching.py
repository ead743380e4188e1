"""Token counts to micro-batches: pure numpy, no texts and no tensors."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from e5spark.errors import OptionError

Indices = npt.NDArray[np.intp]
Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The tokens of one forward pass: its rows end to end, none of them padded.

    Attributes:
        ids: Token ids, special tokens included.  # (sum of lengths,)
        lengths: Tokens of each row.  # (rows,)
    """

    ids: Ints
    lengths: Longs

    def check_ids(self, vocabulary: int) -> None:
        """Raises unless the checkpoint embeds every token: a GPU would be lost to its process.

        Raises:
            IndexError: If an id is not below the number of tokens that the checkpoint embeds.
        """
        highest = int(self.ids.max(initial=0))
        if highest >= vocabulary:
            raise IndexError(
                f"token id {highest} is out of range: the checkpoint embeds {vocabulary} tokens"
            )

    def padded(self, pad_id: int, *, multiple: int = 1) -> Longs:
        """Returns the ids with each row filled up on the right.

        Args:
            pad_id: What it is filled up with.
            multiple: See ``padded_width``.

        Returns:
            int64.  # (rows, width)
        """
        width = padded_width(int(self.lengths.max(initial=0)), multiple)
        inside = np.arange(width) < self.lengths[:, None]
        ids = np.full(inside.shape, pad_id, dtype=np.int64)
        ids[inside] = self.ids
        return ids


def micro_batches(
    lengths: npt.ArrayLike, token_budget: int, *, packed: bool = False, multiple: int = 1
) -> list[Indices]:
    """Returns the rows of each forward pass: every row once, longest rows first.

    Rows are sorted by token count (equal counts keep their order), then cut greedily so that rows
    times their width, padding included, stays within the budget. A row longer than the budget goes
    alone. Longest first, so that a budget too large for the memory fails at once and
    not after hours.

    Args:
        lengths: Tokens per row, special tokens and prompt included; each at least 1.
        token_budget: Most tokens in one forward pass, padding included.
        packed: Whether the engine needs no padding, so that only the rows' own tokens count.
        multiple: See ``padded_width``. Full batches of one width have as many rows: fewer shapes
            than lengths.

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
            rows = token_budget // max(padded_width(int(counts[order[start]]), multiple), 1)
        batches.append(order[start : start + max(1, rows)])
        start += max(1, rows)
    return batches


def padded_width(longest: int, multiple: int) -> int:
    """Returns the width of a batch: at least its longest row, and one of few that there are.

    Args:
        longest: Tokens of that row.
        multiple: Widths are multiples of this, and beyond 16 of them of an eighth of the power of
            two below; with 1 they are as they come.
    """
    if multiple == 1:
        return longest
    octave = 1 << max((longest - 1).bit_length() - 1, 0)
    step = max(multiple, octave // 8)
    return -(-longest // step) * step
