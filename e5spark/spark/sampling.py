"""A sample of a table's texts, with the prefixes that they are embedded with."""

import pyarrow as pa
from pyspark.sql import DataFrame

from e5spark import text
from e5spark.errors import InputError
from e5spark.model.resolve import Plan
from e5spark.spark.columns import TextColumns
from e5spark.spark.embedding import udf_call
from e5spark.spark.worker import prefixes


def sample_texts(
    df: DataFrame, plan: Plan, texts: TextColumns, *, rows: int
) -> tuple[list[str], list[str]]:
    """Returns the texts of about ``rows`` rows of a table, and the prefix of each text.

    Args:
        df: The corpus.
        plan: The plan that has the prompts.
        texts: The text columns.
        rows: About how many rows to use; the same rows each time for the same table.

    Raises:
        InputError: If no row has a text.
    """
    request, arguments = udf_call(df, plan, texts)
    total = df.count()
    if total > rows:
        # Half as many more: Spark's sample has about, not exactly, the requested fraction.
        df = df.sample(fraction=min(1.0, 1.5 * rows / total), seed=0).limit(rows)
    aliases = [column.alias(str(number)) for number, column in enumerate(arguments)]
    sample = df.select(*aliases).collect()
    columns = [
        pa.array([_bytes(row[number]) for row in sample], pa.binary())
        for number in range(len(arguments))
    ]
    row_prefixes, errors = prefixes(request, columns)
    pairs = [
        (value, row_prefixes[row])
        for column in columns[: request.texts]
        for row, value in enumerate(text.decode(column))
        if value is not None and text.status(value) == "ok" and row not in errors
    ]
    if not pairs:
        raise InputError(f"None of the {len(sample)} sampled rows has a text.")
    return [value for value, _ in pairs], [prefix for _, prefix in pairs]


def _bytes(value: str | bytes | bytearray | None) -> bytes | None:
    if value is None:
        return None
    return value.encode() if isinstance(value, str) else bytes(value)
