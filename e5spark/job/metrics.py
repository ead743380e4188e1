"""What became of each row: counted while it is written, added up, and reconciled."""

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
_NO_LIMIT = 1 << 30


def counts(plan: Plan, names: Sequence[Mapping[str, str]]) -> list[Column]:
    """Returns what is counted while rows are written, over all text columns: no second pass.

    A text that is split is counted once, by its first window; its tokens by all of them.

    Args:
        plan: How long texts are treated.
        names: Field to column, of each text; see ``spark.embed.result_names``.
    """
    first = F.lit(True)
    if plan.recipe.long_text == "split":
        first = F.col(quoted(names[0]["window"])) == 0
    # Only a cut text has more tokens than the limit; a mean's are those of all its windows.
    most = plan.recipe.max_tokens if plan.recipe.long_text == "truncate" else _NO_LIMIT
    return [
        F.count(F.lit(1)).alias("rows"),
        F.sum(first.cast("int")).alias("embedded"),
        *(_total(names, "status", _is(status, first)).alias(status) for status in STATUSES),
        _total(names, "truncated", lambda flag: flag.cast("int")).alias("truncated"),
        _total(names, "already_prompted", lambda flag: (flag & first).cast("int")).alias(
            "already_prompted"
        ),
        _total(names, "n_tokens", lambda tokens: tokens).alias("tokens"),
        _total(names, "n_tokens", lambda n: F.greatest(n - most, F.lit(0))).alias("lost_tokens"),
    ]


def total(chunks: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Returns the sums of what was counted in each chunk."""
    return {name: sum(chunk[name] for chunk in chunks) for name in (*_SUMS, "embedded")}


def check_chunk(found: Mapping[str, int], *, rows: int, texts: int, staged: int) -> None:
    """Raises unless each row of a chunk was embedded once, has a known status and was written.

    Args:
        found: What was counted.
        rows: Of the chunk's work list.
        texts: Text columns.
        staged: Rows that the files really hold.

    Raises:
        E5SparkError: If not.
    """
    known = sum(found[status] for status in STATUSES)
    if found["embedded"] != rows or known != rows * texts or staged != found["rows"]:
        raise E5SparkError(
            f"A chunk of {rows} rows gave {found['embedded']}, {known} of {rows * texts} texts "
            f"with a known status, and {staged} written rows where {found['rows']} were counted; "
            "it was not committed. This is a bug in e5spark."
        )


def _total(
    names: Sequence[Mapping[str, str]], field: str, count: Callable[[Column], Column]
) -> Column:
    """The sum of something over all rows, and over the text columns."""
    sums = [F.sum(count(F.col(quoted(one[field])))) for one in names]
    return functools.reduce(operator.add, sums)


def _is(status: str, first: Column) -> Callable[[Column], Column]:
    return lambda column: ((column == status) & first).cast("int")
