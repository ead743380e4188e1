"""The rows of a table on the driver: vectors as matrices, and the column they are judged by."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from e5spark.errors import InputError
from e5spark.names import quoted
from e5spark.search.vectors import VectorColumn, matrix
from e5spark.spark.arrow import to_arrow


def collect(
    df: DataFrame, vectors: tuple[VectorColumn, ...], *, id: str = "", column: str = ""
) -> tuple[list[npt.NDArray[np.float32]], list[Any]]:
    """Returns the vectors of a table, in the order of its ids, and the values of a column.

    Args:
        df: The table.
        vectors: The columns of vectors.
        id: The column that orders the rows; without one they keep the order that Spark reads.
        column: The column of the values; without one there are none.

    Returns:
        A float32 matrix for each column of vectors, see ``e5spark.search.vectors.matrix``, and the
        values.

    Raises:
        InputError: If a row has no vector or no value: leaving it out would change the score.
    """
    names = [*(one.name for one in vectors), *filter(None, [column])]
    columns = {f"column_{number}": name for number, name in enumerate(names)}
    table = to_arrow(
        df.select(
            *(F.col(quoted(name)).alias(alias) for alias, name in columns.items()),
            *(F.col(quoted(id)).alias("id") for _ in range(bool(id))),
        )
    )
    if not table.num_rows:
        raise InputError("The table of vectors has no rows; nothing can be judged.")
    for alias, name in columns.items():
        if nulls := table[alias].null_count:
            raise InputError(
                f"{nulls} of {table.num_rows} rows have no value in column {name!r}, and the score "
                "would be another one without them. Correct their texts (the column status says "
                "why a row has no vector), or remove the rows."
            )
    if id:
        table = table.sort_by("id")
    matrices = [
        matrix(_whole(table[alias]), one.output_type, one.dim)
        for alias, one in zip(columns, vectors, strict=False)
    ]
    return matrices, table[f"column_{len(vectors)}"].to_pylist() if column else []


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece."""
    array = column.combine_chunks()
    return array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
