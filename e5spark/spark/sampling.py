"""A sample of a table's texts, with the prefixes they would be embedded with."""

import pyarrow as pa
from pyspark.sql import DataFrame

from e5spark import text
from e5spark.errors import InputError
from e5spark.model.resolve import Plan
from e5spark.spark.embedding import Texts, request
from e5spark.spark.worker import prefixes


def sample_texts(
    df: DataFrame, plan: Plan, texts: Texts, *, rows: int
) -> tuple[list[str], list[str]]:
    """Returns texts of about so many rows of a table, and the prefix of each.

    Args:
        df: The corpus.
        plan: For the prompts.
        texts: Which texts.
        rows: To look at; the same ones each time, as long as the table is the same.

    Raises:
        InputError: If no row has a text.
    """
    asked, arguments = request(df, plan, texts)
    total = df.count()
    if total > rows:
        # Half as many again: a sample of Spark's has about, not exactly, the share asked for.
        df = df.sample(fraction=min(1.0, 1.5 * rows / total), seed=0).limit(rows)
    named = [column.alias(str(number)) for number, column in enumerate(arguments)]
    found = df.select(*named).collect()
    columns = [
        pa.array([_bytes(row[number]) for row in found], pa.binary())
        for number in range(len(arguments))
    ]
    before, refused = prefixes(asked, columns)
    pairs = [
        (each, before[row])
        for column in columns[: asked.texts]
        for row, each in enumerate(text.decode(column))
        if each is not None and text.status(each) == "ok" and row not in refused
    ]
    if not pairs:
        raise InputError("No row of the sample has a text.")
    return [each for each, _ in pairs], [prefix for _, prefix in pairs]


def _bytes(value: str | bytes | bytearray | None) -> bytes | None:
    if value is None:
        return None
    return value.encode() if isinstance(value, str) else bytes(value)
