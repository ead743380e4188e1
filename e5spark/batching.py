"""Token counts to micro-batches: pure numpy, no texts and no tensors."""

import numpy as np
import numpy.typing as npt

from e5spark.errors import OptionError

Indices = npt.NDArray[np.intp]


def micro_batches(lengths: npt.ArrayLike, token_budget: int) -> list[Indices]:
    """Returns the rows of each forward pass: every row once, longest rows first.

    Rows are sorted by token count (equal counts keep their order), then cut greedily so that rows
    times the longest of them, padding included, stays within the budget. A row longer than the
    budget goes alone. Longest first, so that a budget too large for the memory fails at once and
    not after hours.

    Args:
        lengths: Tokens per row, special tokens and prompt included; each at least 1.
        token_budget: Most tokens in one forward pass, padding included.

    Raises:
        OptionError: If the budget is not positive.
    """
    if token_budget < 1:
        raise OptionError(f"token_budget is {token_budget}; it must be at least 1.")
    counts = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-counts, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        longest = int(counts[order[start]])
        rows = max(1, token_budget // max(longest, 1))
        batches.append(order[start : start + rows])
        start += rows
    return batches
