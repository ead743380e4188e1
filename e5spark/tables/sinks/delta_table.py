"""A Delta table as SQL sees it: what it is, its rows and its history."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pyspark.sql import DataFrame, Row, SparkSession

from e5spark.errors import ConflictError, InputError
from e5spark.names import quoted, redacted
from e5spark.tables.sinks.protocol import Size
from e5spark.tables.spark_errors import condition, reason, spark_errors
from e5spark.tables.storage.local import LocalStorage
from e5spark.tables.storage.open import open_storage

_ABSENT = {"DELTA_MISSING_DELTA_TABLE", "TABLE_OR_VIEW_NOT_FOUND", "DELTA_TABLE_NOT_FOUND"}
_NO_DELTA = {
    "DATA_SOURCE_NOT_FOUND",
    "DELTA_CONFIGURE_SPARK_SESSION_WITH_EXTENSION_AND_CATALOG",
}


@dataclass(frozen=True, kw_only=True)
class Detail:
    """What Delta says about a table.

    Attributes:
        format: ``delta``, or the format of another table of this name.
        location: Its directory.
        properties: The properties that were set.
        size: Its files in its last version.
    """

    format: str
    location: str
    properties: Mapping[str, str]
    size: Size


class DeltaTable:
    """A Delta table through SQL alone, so that it works over Spark Connect.

    Attributes:
        name: The name in SQL.
    """

    def __init__(self, spark: SparkSession, name: str) -> None:
        self._spark = spark
        self.name = name

    def detail(self) -> Detail | None:
        """Returns what the table is; None if it does not exist.

        Raises:
            InputError: If the session has no Delta, or cannot read the table.
        """
        with spark_errors(f"The table {self.name} cannot be read", otherwise=InputError):
            try:
                (row,) = self._spark.sql(f"DESCRIBE DETAIL {self.name}").collect()
            except Exception as error:  # py4j has errors that PySpark does not wrap
                if condition(error) not in _ABSENT:
                    raise
                # A session without Delta says the same.
                _check_session(self._spark)
                return None
        return Detail(
            format=row["format"],
            location=row["location"],
            properties=row["properties"],
            size=Size(files=row["numFiles"] or 0, bytes=row["sizeInBytes"] or 0),
        )

    def rows(self) -> DataFrame:
        """Returns its rows."""
        return self._spark.read.table(self.name)

    def size(self) -> Size:
        """Returns its files in its last version; none if it does not exist."""
        detail = self.detail()
        return Size(files=0, bytes=0) if detail is None else detail.size

    def version(self) -> int:
        """Returns the number of its last commit."""
        (row,) = self._history(1)
        return int(row["version"])

    def check_replaceable(self) -> None:
        """Checks that rows can be changed and removed.

        Raises:
            ConflictError: If the table is append-only.
        """
        detail = self.detail()
        if detail is not None and detail.properties.get("delta.appendOnly", "").lower() == "true":
            raise ConflictError(
                f"The table {redacted(self.name)} is append-only (delta.appendOnly = true), and "
                "this run would change or remove rows. Nothing was embedded. Set the property to "
                "false, or give a new output; if only columns that pass through have changed, "
                "run.refresh_columns = false keeps their old values."
            )

    def has_commit(self, metadata: str, *, after: int) -> bool:
        """Returns whether a commit later than a version has this user metadata."""
        newer = self.version() - after
        return newer > 0 and any(row["userMetadata"] == metadata for row in self._history(newer))

    def _history(self, commits: int) -> list[Row]:
        return self._spark.sql(f"DESCRIBE HISTORY {self.name} LIMIT {commits}").collect()


def delta_name(path: str) -> str:
    """Returns the name of a directory in SQL; the path must be absolute."""
    return f"delta.{quoted(path)}"


def absolute(spark: SparkSession, path: str) -> str:
    """Returns a path that does not depend on the working directory.

    Raises:
        InputError: If it is relative and not on this machine.
    """
    if ":" in path or path.startswith("/"):
        return path
    if not isinstance(open_storage(spark, path), LocalStorage):
        raise InputError(
            f"The path {redacted(path)} of a Delta table is relative; give an absolute one."
        )
    return str(Path(path).absolute())


def _check_session(spark: SparkSession) -> None:
    try:
        spark.read.format("delta").load().schema  # noqa: B018  # should fail for lack of a path
    except Exception as error:  # py4j has errors that PySpark does not wrap
        if condition(error) in _NO_DELTA:
            raise InputError(f"Delta cannot be used: {reason(error)}") from error
