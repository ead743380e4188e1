"""The difference between an input and its table: new ids, changed content, changed columns.

The columns that this module adds, to a user's table or beside it, have names that begin with
``names.RESERVED``: no column of a user's table has such a name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

from pyspark.sql import Column, DataFrame, Observation, Window
from pyspark.sql import functions as F
from pyspark.sql.types import AtomicType, DataType

from e5spark.errors import ColumnError, InputError, TransientError
from e5spark.job.hashes import kept_hash
from e5spark.names import quoted
from e5spark.tables.spark_settings import described

KIND = "__e5spark_kind"
COPIES = "__e5spark_copies"
_POSITION = "__e5spark_position"
_ID, _HASH, _FAILED, _ROWS = (f"__e5spark_{name}" for name in ("id", "hash", "failed", "rows"))
_IN_INPUT, _IN_TABLE = "__e5spark_in_input", "__e5spark_in_table"
_TABLE_HASH = "__e5spark_table_hash"
_KEPT, _TABLE_KEPT = "__e5spark_kept", "__e5spark_table_kept"
_KINDS = ("append", "deferred", "refresh", "delete")
_EXAMPLES = 5
_ID_LENGTH = 40


def check_id(df: DataFrame, id: str) -> None:
    """Checks that values of a column's type can identify rows.

    Raises:
        ColumnError: If the type is not atomic.
    """
    type_ = df.schema[id].dataType
    if not isinstance(type_, AtomicType) or type_.simpleString() == "variant":
        raise ColumnError(
            f"Column {id!r} is {type_.simpleString()}; input.id needs a single value, such as a "
            "string or a number."
        )


def first_of_each(df: DataFrame, id: str, hash: str) -> DataFrame:
    """Returns one row for each id: the row with the lowest content hash.

    Among rows with the same content, it is the row whose other columns have the lowest hash. The
    column ``COPIES`` is added: how many rows of ``df`` have this id.
    """
    hashed = [F.col(quoted(field.name)) for field in df.schema if _has_hash(field.dataType)]
    same_id = Window.partitionBy(F.col(quoted(id)))
    # The last hash tells rows apart that differ in nulls or maps only.
    order = same_id.orderBy(F.col(quoted(hash)), F.xxhash64(*hashed), kept_hash(df, df.columns))
    numbered = df.withColumns(
        {_POSITION: F.row_number().over(order), COPIES: F.count(F.lit(1)).over(same_id)}
    )
    return numbered.filter(F.col(_POSITION) == 1).drop(_POSITION)


def _has_hash(type_: DataType) -> bool:
    text = type_.simpleString()
    return "map<" not in text and "variant" not in text


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The columns of an input and its table that are compared.

    Attributes:
        id: The column that identifies a row, in both.
        hash: The column with the content hash, in both.
        kept: Columns of both that decide no vector, and whose changes matter.
        statuses: The status columns of the table; a row with ``error`` in one is embedded again.
    """

    id: str
    hash: str
    kept: Sequence[str]
    statuses: Sequence[str]


def diff(
    source: DataFrame,
    table: DataFrame,
    columns: Compared,
    *,
    find_deleted: bool,
    deleted_ids: DataFrame | None = None,
) -> tuple[DataFrame, Observation]:
    """Returns the ids whose rows must be written or removed, without duplicates, and counts.

    It takes one join of ids and hashes; no text is shuffled.

    Args:
        source: The input. Its ids may be null or duplicates, which ``check_ids`` refuses.
        table: The table's rows; several rows with one id are windows of one text.
        columns: What is compared.
        find_deleted: Whether to look for ids of the table that are missing from the input.
        deleted_ids: One column, the id: ids that a change feed reports as deleted, without
            duplicates, and none of them in the input.

    Returns:
        A table of ids with the column ``KIND`` (``append`` for a new id, ``deferred`` for a row
        that replaces another one, ``refresh`` for a row whose kept columns alone have changed,
        ``delete``), for ``rows_to_embed`` and ``ids_of``; and the counts that are observed while it
        is written: the counts of ``count_ids``, and the number of ids of each kind.
    """
    id, hash = F.col(quoted(columns.id)), F.col(quoted(columns.hash))
    ids = source.select(
        id.alias(_ID),
        hash.alias(_HASH),
        kept_hash(source, columns.kept).alias(_KEPT),
        _copies(source),
    )
    ids = ids.groupBy(_ID).agg(
        F.min(_HASH).alias(_HASH),
        F.min(_KEPT).alias(_KEPT),
        F.count(F.lit(1)).alias(_ROWS),
        F.sum(COPIES).alias(COPIES),
        F.lit(True).alias(_IN_INPUT),
    )
    if deleted_ids is not None:
        deleted = deleted_ids.select(id.alias(_ID))
        ids = ids.unionByName(deleted, allowMissingColumns=True)
    failed = reduce(Column.__or__, (F.col(quoted(name)) == "error" for name in columns.statuses))
    committed = (
        table.select(
            id.alias(_ID),
            hash.alias(_TABLE_HASH),
            kept_hash(table, columns.kept).alias(_TABLE_KEPT),
            F.coalesce(failed, F.lit(False)).alias(_FAILED),
        )
        .groupBy(_ID)
        .agg(
            F.min(_TABLE_HASH).alias(_TABLE_HASH),
            F.min(_TABLE_KEPT).alias(_TABLE_KEPT),
            F.max(_FAILED).alias(_FAILED),
            F.lit(True).alias(_IN_TABLE),
        )
    )
    joined = ids.join(committed, _ID, "full_outer" if find_deleted else "left_outer")
    kind = (
        F.when(F.col(_IN_INPUT).isNull(), F.when(F.col(_IN_TABLE), "delete"))
        .when(F.col(_TABLE_HASH).isNull(), "append")
        .when((F.col(_TABLE_HASH) != F.col(_HASH)) | F.col(_FAILED), "deferred")
        .when(F.col(_TABLE_KEPT) != F.col(_KEPT), "refresh")
    )
    observation = Observation("e5spark_diff")
    kinds = [F.count(F.when(F.col(KIND) == name, 1)).alias(name) for name in _KINDS]
    counted = joined.withColumn(KIND, kind).observe(observation, *_id_counts(), *kinds)
    return counted.filter(F.col(KIND).isNotNull()).select(_ID, KIND), observation


def count_ids(source: DataFrame, id: str) -> dict[str, int]:
    """Returns the counts of ids and rows of an input whose rows are all new.

    Returns:
        ``ids``: distinct ids, including null; ``rows_in``: rows; ``copies``: rows before
        ``first_of_each``; ``nulls``: rows without an id; ``duplicates``: ids of several rows.
    """
    ids = source.select(F.col(quoted(id)).alias(_ID), _copies(source))
    ids = ids.groupBy(_ID).agg(F.count(F.lit(1)).alias(_ROWS), F.sum(COPIES).alias(COPIES))
    with described(source.sparkSession, "count ids"):
        (row,) = ids.agg(*_id_counts()).collect()
    return {name: value or 0 for name, value in row.asDict().items()}


def _id_counts() -> list[Column]:
    in_input = F.col(_ROWS).isNotNull()
    is_null = F.col(_ID).isNull()
    return [
        F.count(F.when(in_input, 1)).alias("ids"),
        F.sum(_ROWS).alias("rows_in"),
        F.sum(COPIES).alias("copies"),
        F.sum(F.when(in_input & is_null, F.col(COPIES))).alias("nulls"),
        F.count(F.when((F.col(_ROWS) > 1) & ~is_null, 1)).alias("duplicates"),
    ]


def _copies(source: DataFrame) -> Column:
    """Returns how many rows of the input a row represents."""
    return F.col(COPIES) if COPIES in source.columns else F.lit(1).alias(COPIES)


def check_ids(
    source: DataFrame, id: str, counts: Mapping[str, int], *, is_text: bool = False
) -> None:
    """Checks that no id is null or a duplicate; the message names up to five duplicates.

    Args:
        source: The table that was counted; read again only if it has duplicates.
        id: The column that identifies a row.
        counts: From ``diff`` or ``count_ids``.
        is_text: Whether the id is also embedded: texts are never logged, so no id is named.

    Raises:
        InputError: If an id is null or a duplicate.
    """
    if counts["nulls"]:
        raise InputError(
            f"{counts['nulls']} rows have no id in column {id!r}; an id must not be null. Fill it, "
            "filter these rows out, or set input.hash_id = true in place of input.id. (A malformed "
            "record that is read in mode PERMISSIVE is a row of nulls.)"
        )
    if counts["duplicates"]:
        examples = "" if is_text else f": {_examples(source, id, counts['duplicates'])}"
        raise InputError(
            f"The input has duplicate ids in column {id!r}, {counts['duplicates']} of them"
            f'{examples}. Give each row an id of its own, or set input.on_duplicate = "first".'
        )


def _examples(source: DataFrame, id: str, duplicates: int) -> str:
    groups = source.groupBy(F.col(quoted(id)).alias(_ID)).agg(F.count(F.lit(1)).alias(_ROWS))
    rows = groups.filter(F.col(_ROWS) > 1).orderBy(_ID).limit(_EXAMPLES).collect()
    ids = ", ".join(f"{_shortened(row[_ID])} ({row[_ROWS]} rows)" for row in rows)
    return f"{ids}, ..." if duplicates > _EXAMPLES else ids


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _ID_LENGTH else f"{text[: _ID_LENGTH - 1]}…"


def check_not_empty(counts: Mapping[str, int], name: str) -> None:
    """Checks that an input without rows does not remove all rows of a table.

    Args:
        counts: From ``diff``.
        name: The table, as the user names it.

    Raises:
        InputError: If the input has no rows and the table has some.
    """
    if counts["delete"] and not counts["rows_in"]:
        raise InputError(
            f"The input has no rows; run.delete_missing would remove all {counts['delete']} ids "
            f"from {name}, and nothing was changed. Check that this is the intended, complete "
            "input. To empty the table, remove the output and run again."
        )


def rows_to_embed(source: DataFrame, differences: DataFrame, id: str) -> DataFrame:
    """Returns the rows of the input that are new or changed, with their ``KIND``."""
    ids = differences.filter(F.col(KIND).isin("append", "deferred")).withColumnRenamed(_ID, id)
    return source.join(ids, id, "inner")


def ids_of(differences: DataFrame, id: str, kind: str) -> DataFrame:
    """Returns one column: the ids of one ``KIND``, such as those to ``delete``."""
    return differences.filter(F.col(KIND) == kind).select(F.col(_ID).alias(id))


def check_unchanged(expected: int, rows: int, *, action: str = "embedded") -> None:
    """Checks that the second read of the input found as many rows as the first.

    Raises:
        TransientError: If the numbers differ.
    """
    if rows != expected:
        raise TransientError(
            f"The input changed while it was read: {expected} rows were to be {action}, and the "
            f"second read found {rows}. Run the same command again; if the error comes back, the "
            "ids differ each time they are computed."
        )
