"""Hashes that tell whether a row has changed: of its content, and of the columns that it keeps."""

from collections.abc import Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import AtomicType, StringType, StructField

from e5spark.names import quoted

# Complete: by default JSON has milliseconds only.
_SECONDS = "yyyy-MM-dd'T'HH:mm:ss.SSSSSS"
_JSON = {"timestampFormat": f"{_SECONDS}XXX", "timestampNTZFormat": _SECONDS}


def content_hash(parts: Sequence[Column]) -> Column:
    """Returns a hash of the bytes of strings: binary, 32 bytes, never null.

    It is the sha256 of the concatenated parts: each is a netstring, ``5:hello``, or ``-`` for a
    null, so that different lists of parts are never encoded alike. Bytes that are not valid UTF-8
    are hashed as they are.
    """
    return F.unhex(F.sha2(F.concat(*map(_netstring, parts)), 256))


def _netstring(part: Column) -> Column:
    data = part.cast("binary")
    size = F.octet_length(data).cast("string")
    framed = F.concat(size.cast("binary"), F.lit(":").cast("binary"), data)
    return F.when(part.isNull(), F.lit("-").cast("binary")).otherwise(framed)


def kept_hash(df: DataFrame, kept: Sequence[str]) -> Column:
    """Returns a hash of some columns: long, never null; a constant if there are none.

    Rows with other values have other hashes, but for one pair in 2^64. The hash is compared within
    one query and never stored: types, the session's time zone and releases of Spark may change it.

    Args:
        df: The table.
        kept: Its columns.
    """
    if not kept:
        return F.lit(0).cast("long")
    columns = [F.col(quoted(name)) for name in kept]
    values = [
        _hashable(df.schema[name], column) for name, column in zip(kept, columns, strict=True)
    ]
    # xxhash64 skips nulls: (1, null) and (null, 1) would be alike.
    return F.xxhash64(*values, *(column.isNull() for column in columns))


def _hashable(field: StructField, column: Column) -> Column:
    """Returns a column as a type whose hash tells all values apart."""
    if isinstance(field.dataType, StringType):
        return column.cast("binary")  # equal under a collation is not the same
    if isinstance(field.dataType, AtomicType) and field.dataType.simpleString() != "variant":
        return column
    # xxhash64 has no maps, and skips nulls in arrays and structs.
    return F.to_json(F.struct(column), _JSON)
