"""A function of Arrow batches, wrapped as the kind of UDF that the running Spark has.

Workers import this module. It imports pandas for pandas UDFs only, because that takes 0.3 s and
31 MB.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf
from pyspark.sql.types import DataType, StructField, StructType

from e5spark.spark.results import udf_type, vector_type
from e5spark.spark.worker import Request, run

if TYPE_CHECKING:
    import pandas as pd

Udf = Callable[..., Column]
Select = Callable[[list[pa.Array]], pa.Array]


def has_arrow_udf() -> bool:
    """Returns whether the running Spark has Arrow UDFs (4.1 and later)."""
    return hasattr(F, "arrow_udf")


def result_udf(request: Request) -> Udf:
    """Returns a UDF from text columns to a struct of their results: ``t0``, ``t1`` ..."""
    result = udf_type(request.plan, figures=request.figures)
    fields = [StructField(f"t{number}", result) for number in range(request.texts)]
    return _udf(request, StructType(fields), _all)


def vector_udf(request: Request) -> Udf:
    """Returns a UDF from a text column to its vectors; null where there is none."""
    return _udf(request, vector_type(request.plan), _vector)


def _all(columns: list[pa.Array]) -> pa.Array:
    names = [f"t{number}" for number in range(len(columns))]
    return pa.StructArray.from_arrays(columns, names=names)


def _vector(columns: list[pa.Array]) -> pa.Array:
    return columns[0].field("embedding")


def _udf(request: Request, kind: DataType, select: Select) -> Udf:
    build = _arrow_udf if has_arrow_udf() else _pandas_udf
    # Otherwise a filter on the status runs the model a second time: Spark may evaluate a
    # deterministic expression wherever it occurs.
    return build(request, kind, select).asNondeterministic()  # type: ignore[no-any-return]


def _arrow_udf(request: Request, kind: DataType, select: Select) -> Any:  # noqa: ANN401
    from pyspark.sql.pandas.functions import arrow_udf  # absent before Spark 4.1

    def embed_arrow(batches: Iterator[tuple[pa.Array, ...]]) -> Iterator[pa.Array]:
        return map(select, run(request, map(_as_tuple, batches)))

    return arrow_udf(embed_arrow, kind)  # type: ignore[call-overload]  # its stubs lack structs


def _pandas_udf(request: Request, kind: DataType, select: Select) -> Any:  # noqa: ANN401
    import pandas as pd  # Spark looks its names up in the annotations

    def embed_arrow(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pa.Array]:
        arrays = (tuple(map(_from_pandas, _as_tuple(batch))) for batch in batches)
        return map(select, run(request, arrays))

    # Spark reads the kind of a pandas UDF from its annotations: a struct is a DataFrame.
    def embed_struct(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.DataFrame]:
        for array in embed_arrow(batches):
            yield pa.Table.from_struct_array(array).to_pandas()

    def embed_series(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.Series]:
        for array in embed_arrow(batches):
            yield array.to_pandas()

    embed = embed_struct if isinstance(kind, StructType) else embed_series
    return pandas_udf(embed, kind)  # type: ignore[call-overload]  # one call for both kinds


def _from_pandas(series: "pd.Series") -> pa.Array:
    # A column without texts keeps its type, so that the worker can name the type as it refuses it;
    # numbers would become bytes without an error.
    if series.dtype.kind != "O":
        return pa.Array.from_pandas(series)
    try:
        # With a type, because a batch of nulls alone would get the type null.
        return pa.Array.from_pandas(series, type=pa.binary())
    except pa.ArrowException:
        return pa.Array.from_pandas(series)


def _as_tuple(batch: Any) -> tuple[Any, ...]:  # noqa: ANN401  # Spark passes a lone column bare
    return batch if isinstance(batch, tuple) else (batch,)
