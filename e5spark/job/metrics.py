"""Counts of rows and texts: taken while rows are written, added up, and reconciled."""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence

from pyspark.sql import Column
from pyspark.sql import functions as F

from e5spark.errors import E5SparkError
from e5spark.model.resolve import Plan
from e5spark.names import quoted

STATUSES = ("ok", "null_text", "empty_text", "error")
_SUMS = ("rows", *STATUSES, "truncated", "already_prompted", "tokens", "lost_tokens")
COUNTS = (*_SUMS, "embedded")
_NO_LIMIT = 1 << 30


def counts(plan: Plan, names: Sequence[Mapping[str, str]]) -> list[Column]:
    """Returns the columns that count rows and texts while rows are written, in the same pass.

    A text that is split counts once, at its first window; its tokens are counted in all windows.

    Args:
        plan: For the way long texts are embedded.
        names: Field to column, for each text; see ``result_names``.
    """
    is_first = is_first_row(plan, names)
    # Only a truncated text has more tokens than the limit; a mean counts the tokens of all windows.
    limit = plan.recipe.max_tokens if plan.recipe.long_text == "truncate" else _NO_LIMIT
    return [
        F.count(F.lit(1)).alias("rows"),
        F.sum(is_first.cast("int")).alias("embedded"),
        *(_total(names, "status", _is(status, is_first)).alias(status) for status in STATUSES),
        _total(names, "truncated", lambda flag: flag.cast("int")).alias("truncated"),
        _total(names, "already_prompted", lambda flag: (flag & is_first).cast("int")).alias(
            "already_prompted"
        ),
        _total(names, "n_tokens", lambda tokens: tokens).alias("tokens"),
        _total(names, "n_tokens", lambda n: F.greatest(n - limit, F.lit(0))).alias("lost_tokens"),
    ]


def is_first_row(plan: Plan, names: Sequence[Mapping[str, str]]) -> Column:
    """Returns whether a row of the output is the first of its input row; see ``counts``."""
    if plan.recipe.long_text == "split":
        return F.col(quoted(names[0]["window"])) == 0
    return F.lit(True)


def total(chunks: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Returns the sums of the counts of chunks."""
    return {name: sum(chunk[name] for chunk in chunks) for name in COUNTS}


def check_chunk(counts: Mapping[str, int], *, rows: int, texts: int, staged: int) -> None:
    """Checks that each row of a chunk was embedded once, has a known status and was written.

    Args:
        counts: The counts of the chunk.
        rows: Rows in the chunk's part of the work list.
        texts: Text columns.
        staged: Rows in the staged files.

    Raises:
        E5SparkError: If a row is missing or was written twice.
    """
    with_status = sum(counts[status] for status in STATUSES)
    if counts["embedded"] != rows or with_status != rows * texts or staged != counts["rows"]:
        raise E5SparkError(
            f"A chunk of {rows} rows has {counts['embedded']} embedded rows, {with_status} of "
            f"{rows * texts} texts with a known status, and {staged} staged rows where "
            f"{counts['rows']} were counted; it was not committed. This is a bug in e5spark."
        )


def _total(
    names: Sequence[Mapping[str, str]], field: str, count: Callable[[Column], Column]
) -> Column:
    """Returns the sum over all rows and all text columns."""
    sums = [F.sum(count(F.col(quoted(columns[field])))) for columns in names]
    return functools.reduce(operator.add, sums)


def _is(status: str, is_first: Column) -> Callable[[Column], Column]:
    return lambda column: ((column == status) & is_first).cast("int")
