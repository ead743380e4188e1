"""Ids as an index wants them: the table's own, or UUIDs or whole numbers that are made of them."""

import uuid
from typing import Literal

from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ByteType,
    DecimalType,
    IntegerType,
    LongType,
    ShortType,
    StringType,
    StructField,
)

from e5spark.errors import ColumnError
from e5spark.names import quoted

Ids = Literal["table", "uuid", "int64"]

# uuid5(NAMESPACE_URL, "https://github.com/e5spark/e5spark"): ids must never change, so neither may
# this.
NAMESPACE = "b97dd05c-ccf5-5233-af9a-d1061d38b74e"
_AS_STRING = (StringType, ByteType, ShortType, IntegerType, LongType, DecimalType)


def exported_id(id: StructField, *, window: str | None, ids: Ids, namespace: str) -> Column:
    """Returns the id of an exported row: of a window, the id, ``#`` and the number of the window.

    Args:
        id: The table's column of ids.
        window: The column with the number of a window; None if texts are not split.
        ids: What is made of it.
        namespace: A UUID.

    Raises:
        ColumnError: If a string is to be made of an id that is neither a string nor a whole number.
    """
    column = F.col(quoted(id.name))
    if isinstance(id.dataType, StringType):
        column = column.cast("string")  # equal under a collation is not the same id
    if window is None and ids == "table":
        return column
    if not isinstance(id.dataType, _AS_STRING):
        raise ColumnError(
            f"Column {id.name!r} is {id.dataType.simpleString()}; an id that becomes part of a "
            "string must be a string or a whole number. Give the table such an id, or export the "
            "ids as they are, without --uuid, --int64 and long_text = 'split'."
        )
    name = column.cast("string")
    if window is not None:
        name = F.concat(name, F.lit("#"), F.col(quoted(window)).cast("string"))
    if ids == "table":
        return name
    make = uuid5 if ids == "uuid" else int64
    return make(namespace, name)


def uuid5(namespace: str, name: Column) -> Column:
    """Returns the UUID (version 5) of a string, as Python's ``uuid.uuid5`` and PostgreSQL make it.

    Args:
        namespace: A UUID.
        name: A string column.
    """
    digest = _digest(namespace, name)
    variant = F.translate(F.substring(digest, 17, 1), "0123456789abcdef", "89ab" * 4)
    return F.concat_ws(
        "-",
        F.substring(digest, 1, 8),
        F.substring(digest, 9, 4),
        F.concat(F.lit("5"), F.substring(digest, 14, 3)),
        F.concat(variant, F.substring(digest, 18, 3)),
        F.substring(digest, 21, 12),
    )


def int64(namespace: str, name: Column) -> Column:
    """Returns 63 bits of a hash of a string, as a long that is not negative.

    In Python: ``int.from_bytes(sha1(namespace.bytes + name.encode()).digest()[:8]) >> 1``.

    Args:
        namespace: A UUID.
        name: A string column.
    """
    first = F.substring(_digest(namespace, name), 1, 16)
    return F.shiftrightunsigned(F.conv(first, 16, -10).cast("long"), 1)


def _digest(namespace: str, name: Column) -> Column:
    """Returns the sha1, as hex digits, of a namespace and a name, as a UUID of version 5 has it."""
    return F.sha1(F.concat(F.lit(uuid.UUID(namespace).bytes), name.cast("binary")))
