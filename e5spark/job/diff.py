"""What a run has to do: the rows of the source whose id is new, or whose content has changed."""

from collections.abc import Sequence
from functools import reduce

from pyspark.sql import Column, DataFrame, Observation, Window
from pyspark.sql import functions as F
from pyspark.sql.types import AtomicType, DataType

from e5spark.errors import ColumnError, InputError, TransientError
from e5spark.names import quoted

KIND = "__e5spark_kind"
COPIES = "__e5spark_copies"
_ID, _HASH, _FAILED, _COUNT = "id", "hash", "failed", "count"
_NAMED = 5


def content_hash(parts: Sequence[Column]) -> Column:
    """Returns a hash of strings as they are: binary of 32 bytes.

    It is the sha256 of the parts as netstrings, ``5:hello``, one after another, and ``-`` for a
    null: no two lists of parts look the same. The bytes are hashed, valid UTF-8 or not.
    """
    return F.unhex(F.sha2(F.concat(*map(_netstring, parts)), 256))


def _netstring(part: Column) -> Column:
    data = part.cast("binary")
    size = F.octet_length(data).cast("string")
    framed = F.concat(size.cast("binary"), F.lit(":").cast("binary"), data)
    return F.when(part.isNull(), F.lit("-").cast("binary")).otherwise(framed)


def check_id(df: DataFrame, id: str) -> None:
    """Raises unless the type of a column can name rows.

    Raises:
        ColumnError: If it is no atomic type.
    """
    kind = df.schema[id].dataType
    if not isinstance(kind, AtomicType) or kind.simpleString() == "variant":
        raise ColumnError(
            f"Column {id!r} is {kind.simpleString()}; input.id needs a single value, such as a "
            "string or a number."
        )


def first_of_each(df: DataFrame, id: str, hash: str) -> DataFrame:
    """Returns one row for each id: that with the lowest content hash.

    Of rows with the same content, the one whose other columns have the lowest hash. How many rows
    there were of an id stands in the column ``COPIES``.
    """
    rest = [F.col(quoted(field.name)) for field in df.schema if _has_hash(field.dataType)]
    each = Window.partitionBy(F.col(quoted(id)))
    order = each.orderBy(F.col(quoted(hash)), F.xxhash64(*rest))
    counted = df.withColumns(
        {_COUNT: F.row_number().over(order), COPIES: F.count(F.lit(1)).over(each)}
    )
    return counted.filter(f"{_COUNT} = 1").drop(_COUNT)


def _has_hash(kind: DataType) -> bool:
    text = kind.simpleString()
    return "map<" not in text and "variant" not in text


def find(
    source: DataFrame,
    current: DataFrame,
    *,
    id: str,
    hash: str,
    statuses: Sequence[str],
    deleted: bool,
    gone: DataFrame | None = None,
) -> tuple[DataFrame, Observation]:
    """Returns what differs between the source and the table: one row for each id.

    One join of ids and hashes, no texts.

    Args:
        source: Its ids may be duplicates or null; ``check`` says so.
        current: The table's rows; several of one id are windows of one text.
        id: The column of both that names a row.
        hash: The column of both that holds the content hash.
        statuses: The columns of the table that say what became of a text.
        deleted: Whether ids that the source has no more are looked for too.
        gone: One column, the id, each once: those that are known to have left. None of them is in
            the source.

    Returns:
        A table of ``id`` and its kind (``append`` if it is new, ``deferred`` if it replaces a row,
        ``delete``), and what is observed while it is written.
    """
    ids = source.select(
        F.col(quoted(id)).alias(_ID), F.col(quoted(hash)).alias(_HASH), _copies(source)
    )
    ids = ids.groupBy(_ID).agg(
        F.min(_HASH).alias(_HASH),
        F.count(F.lit(1)).alias(_COUNT),
        F.sum(COPIES).alias(COPIES),
        F.lit(True).alias("here"),
    )
    if gone is not None:
        left = gone.select(F.col(quoted(id)).alias(_ID))
        ids = ids.unionByName(left, allowMissingColumns=True)
    failed = reduce(Column.__or__, (F.col(quoted(name)) == "error" for name in statuses))
    known = (
        current.select(
            F.col(quoted(id)).alias(_ID),
            F.col(quoted(hash)).alias("known"),
            F.coalesce(failed, F.lit(False)).alias(_FAILED),
        )
        .groupBy(_ID)
        .agg(
            F.min("known").alias("known"),
            F.max(_FAILED).alias(_FAILED),
            F.lit(True).alias("there"),
        )
    )
    joined = ids.join(known, _ID, "full_outer" if deleted else "left_outer")
    kind = (
        F.when(F.col("here").isNull(), F.when(F.col("there"), "delete"))
        .when(F.col("known").isNull(), "append")
        .when((F.col("known") != F.col(_HASH)) | F.col(_FAILED), "deferred")
    )
    seen = Observation("e5spark_changes")
    kinds = [
        F.count(F.when(F.col(KIND) == k, 1)).alias(k) for k in ("append", "deferred", "delete")
    ]
    counted = joined.withColumn(KIND, kind).observe(seen, *_id_counts(), *kinds)
    return counted.filter(F.col(KIND).isNotNull()).select(_ID, KIND), seen


def count_ids(source: DataFrame, id: str) -> dict[str, int]:
    """Returns what ``find`` observes of the ids of a table all of whose rows are new."""
    ids = source.select(F.col(quoted(id)).alias(_ID), _copies(source))
    ids = ids.groupBy(_ID).agg(F.count(F.lit(1)).alias(_COUNT), F.sum(COPIES).alias(COPIES))
    (row,) = ids.agg(*_id_counts()).collect()
    return {name: value or 0 for name, value in row.asDict().items()}


def _id_counts() -> list[Column]:
    here = F.col(_COUNT).isNotNull()
    return [
        F.count(F.when(here, 1)).alias("ids"),
        F.sum(_COUNT).alias("rows_in"),
        F.sum(COPIES).alias("copies"),
        F.count(F.when(here & F.col(_ID).isNull(), 1)).alias("nulls"),
        F.count(F.when((F.col(_COUNT) > 1) & F.col(_ID).isNotNull(), 1)).alias("duplicates"),
    ]


def _copies(source: DataFrame) -> Column:
    """How many rows of the input a row stands for."""
    return F.col(COPIES) if COPIES in source.columns else F.lit(1).alias(COPIES)


def check_ids(source: DataFrame, id: str, counts: dict[str, int]) -> None:
    """Raises if some ids are null or stand in several rows; names some of those.

    Args:
        source: The table that was counted; looked at again only if something is wrong.
        id: The column that names a row.
        counts: From ``find`` or ``count_ids``.

    Raises:
        InputError: If so.
    """
    if counts["nulls"]:
        rows = source.filter(F.col(quoted(id)).isNull()).count()
        raise InputError(
            f"{rows} rows have no {id}; an id must not be null. Fill it, filter these rows out, "
            "or give input.hash_id = true in place of input.id."
        )
    if counts["duplicates"]:
        groups = source.groupBy(F.col(quoted(id)).alias(_ID)).count().filter("count > 1")
        some = groups.orderBy(_ID).limit(_NAMED).collect()
        named = ", ".join(f"{row[_ID]!r} ({row['count']} rows)" for row in some)
        raise InputError(
            f"{counts['duplicates']} ids in {id} stand in several rows: {named}"
            f"{', ...' if counts['duplicates'] > _NAMED else ''}. Give each row an id of its "
            'own, or set input.on_duplicate = "first".'
        )


def check_not_empty(counts: dict[str, int], name: str) -> None:
    """Raises if a source without rows would empty a table that has some.

    Args:
        counts: From ``find``.
        name: What the user calls the table.

    Raises:
        InputError: If so.
    """
    if counts["delete"] and not counts["rows_in"]:
        raise InputError(
            f"The input has no rows; with run.delete_missing all {counts['delete']} ids would go "
            f"from {name}, and nothing was changed. Look whether the input is complete, and the "
            "one that was meant. If the table shall be empty, remove the output and run again."
        )


def select(source: DataFrame, found: DataFrame, id: str) -> DataFrame:
    """Returns the rows of the source that have something to do, with the kind of each."""
    wanted = found.filter(F.col(KIND) != "delete").withColumnRenamed(_ID, id)
    return source.join(wanted, id, "inner")


def deleted_ids(found: DataFrame, id: str) -> DataFrame:
    """Returns the ids that left the source."""
    return found.filter(F.col(KIND) == "delete").select(F.col(_ID).alias(id))


def check_unchanged(expected: int, rows: int) -> None:
    """Raises if the source gave other rows the second time that it was read.

    Raises:
        TransientError: If so.
    """
    if rows != expected:
        raise TransientError(
            f"The input changed while it was read: {expected} rows had something to do, and then "
            f"there were {rows} of them. Run again; if this comes every time, its ids differ each "
            "time that they are computed."
        )
