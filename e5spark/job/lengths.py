"""The histogram of token lengths: counted over all texts in the pass that writes them."""

from collections.abc import Mapping, Sequence
from typing import Any

from pyspark.sql import Column
from pyspark.sql import functions as F

from e5spark.model.resolve import Plan
from e5spark.names import quoted

_PREFIX = "longer_than_"


def edges(max_tokens: int) -> list[int]:
    """Returns the largest length of each bin but the last, which is open: four for each doubling.

    From about 8 tokens to 8 times the limit, which is one of them: 37 for a limit of 512.
    """
    first = -4 * max(0, (max_tokens // 8).bit_length() - 1)
    return sorted({round(max_tokens * 2 ** (step / 4)) for step in range(first, 13)})


def columns(plan: Plan, names: Sequence[Mapping[str, str]]) -> list[Column]:
    """Returns the columns that count lengths while rows are written.

    Args:
        plan: For the limit.
        names: Field to column, for each text; see ``result_names``.
    """
    tokens = [
        F.when(F.col(quoted(column["status"])) == "ok", F.col(quoted(column["n_tokens"])))
        for column in names
    ]
    return [
        sum(
            (F.count(F.when(number > edge, 1)) for number in tokens[1:]),
            F.count(F.when(tokens[0] > edge, 1)),
        ).alias(f"{_PREFIX}{edge}")
        for edge in [0, *edges(plan.recipe.max_tokens)]
    ]


def observed(plan: Plan, values: Mapping[str, Any]) -> list[int]:
    """Returns the number of texts in each bin."""
    longer = [int(values[f"{_PREFIX}{edge}"]) for edge in [0, *edges(plan.recipe.max_tokens)]]
    return [one - other for one, other in zip(longer, [*longer[1:], 0], strict=True)]
