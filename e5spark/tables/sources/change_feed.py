"""The change data feed of a Delta table: inserted, updated and deleted rows since a commit."""

from collections.abc import Callable, Mapping

from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from e5spark.errors import InputError
from e5spark.names import quoted, redacted
from e5spark.tables.spark_errors import condition, spark_errors

_TYPE, _VERSION = "_change_type", "_commit_version"
COLUMNS = (_TYPE, _VERSION)
OPTION = "readChangeFeed"
_ALL = (*COLUMNS, "_commit_timestamp")
_DELETED, _RANK = "__e5spark_deleted", "__e5spark_rank"
_ABSENT = {"DELTA_MISSING_CHANGE_DATA", "DELTA_CHANGE_TABLE_FEED_DISABLED"}


def read_path(spark: SparkSession, path: str, *, options: Mapping[str, str]) -> DataFrame:
    """Returns the changes to the table in a directory since a version or a timestamp.

    Raises:
        InputError: If the table has no change data feed, or Spark cannot read it.
    """
    reader = spark.read.format("delta").options(**{**options, OPTION: "true"})
    return _checked(lambda: reader.load(path), path)


def read_table(spark: SparkSession, name: str, *, options: Mapping[str, str]) -> DataFrame:
    """Returns the changes to a catalog table; see ``read_path``."""
    reader = spark.read.options(**{**options, OPTION: "true"})
    return _checked(lambda: reader.table(name), name)


def check(df: DataFrame, name: str) -> DataFrame:
    """Returns a change data feed unchanged.

    Raises:
        InputError: If it is not one: readers of other tables ignore the option.
    """
    if not set(COLUMNS) <= set(df.columns):
        raise InputError(
            f"{redacted(name)} has no change data feed, which input.change_feed reads: it is not "
            "a Delta table. Leave out input.change_feed."
        )
    return df


def last(df: DataFrame, id: str) -> DataFrame:
    """Returns the last change of each id: its row, or its deletion.

    The row before an update counts as deleted unless the same commit has another row of its id: so
    an update of the id itself leaves no old row behind.
    """
    deleted = F.col(_TYPE).isin("delete", "update_preimage")
    order = Window.partitionBy(F.col(quoted(id))).orderBy(F.col(_VERSION).desc(), deleted)
    # All rows of rank 1: the check of ids refuses two rows of one id in one commit.
    ranked = df.withColumns({_DELETED: deleted, _RANK: F.rank().over(order)})
    return ranked.filter(F.col(_RANK) == 1).drop(_RANK, *_ALL)


def split(df: DataFrame, id: str) -> tuple[DataFrame, DataFrame]:
    """Splits the result of ``last`` into rows and deleted ids, which have no duplicates."""
    ids = df.filter(F.col(_DELETED)).select(F.col(quoted(id))).distinct()
    return df.filter(~F.col(_DELETED)).drop(_DELETED), ids.filter(F.col(quoted(id)).isNotNull())


def advice(name: str) -> str:
    """Returns the remedy for an error that says that no changes are recorded; else empty.

    Args:
        name: Spark's name for the error.
    """
    if name not in _ABSENT:
        return ""
    return (
        "Set the table's property delta.enableChangeDataFeed = true: changes are recorded from "
        "then on. Bring the output up to date with a batch run (input.change_feed = false), and "
        "read later changes with a new input.checkpoint_location or a later startingVersion."
    )


def _checked(load: Callable[[], DataFrame], name: str) -> DataFrame:
    failure = f"The changes to {redacted(name)} cannot be read"
    try:
        with spark_errors(failure, otherwise=InputError):
            df = load()
            # Only a job shows whether the changes were recorded.
            check(df, name).select(_VERSION).head(1)
    except InputError as error:
        missing = advice(condition(error.__cause__)) if error.__cause__ else ""
        if missing:
            raise InputError(f"{error} {missing}") from error.__cause__
        raise
    return df
