"""The change data feed of a Delta table: what became of each row since some commit."""

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
_GONE, _RANK = "__e5spark_gone", "__e5spark_rank"
_ABSENT = {"DELTA_MISSING_CHANGE_DATA", "DELTA_CHANGE_TABLE_FEED_DISABLED"}


def read_path(spark: SparkSession, path: str, *, options: Mapping[str, str]) -> DataFrame:
    """Returns the changes of a table in a directory, from a version or a timestamp on.

    Raises:
        InputError: If it has none, or they cannot be read.
    """
    reader = spark.read.format("delta").options(**{**options, OPTION: "true"})
    return _checked(lambda: reader.load(path), path)


def read_table(spark: SparkSession, name: str, *, options: Mapping[str, str]) -> DataFrame:
    """Returns the changes of a catalog table; see ``read_path``."""
    reader = spark.read.options(**{**options, OPTION: "true"})
    return _checked(lambda: reader.table(name), name)


def check(df: DataFrame, name: str) -> DataFrame:
    """Returns a feed, if it is one.

    Raises:
        InputError: If not: readers of other tables pass over the option.
    """
    if not set(COLUMNS) <= set(df.columns):
        raise InputError(
            f"{name} has no change data feed, which input.change_feed reads: it is no Delta table. "
            "Leave input.change_feed out."
        )
    return df


def last(df: DataFrame, id: str) -> DataFrame:
    """Returns what a feed says last of each id: its row, or that it is gone.

    What a row was before an update counts as gone, unless the same commit has a row of that id:
    so an update of the id itself leaves no row behind.
    """
    gone = F.col(_TYPE).isin("delete", "update_preimage")
    order = Window.partitionBy(F.col(quoted(id))).orderBy(F.col(_VERSION).desc(), gone)
    # All of the same rank: two rows of one id in one commit are for others to refuse.
    ranked = df.withColumns({_GONE: gone, _RANK: F.rank().over(order)})
    return ranked.filter(F.col(_RANK) == 1).drop(_RANK, *_ALL)


def split(df: DataFrame, id: str) -> tuple[DataFrame, DataFrame]:
    """Returns the rows that ``last`` found, and the ids that are gone, each once."""
    ids = df.filter(F.col(_GONE)).select(F.col(quoted(id))).distinct()
    return df.filter(~F.col(_GONE)).drop(_GONE), ids.filter(F.col(quoted(id)).isNotNull())


def advice(name: str) -> str:
    """Returns what to do where an error of this name says that changes were not recorded."""
    if name not in _ABSENT:
        return ""
    return (
        "Set the table's property delta.enableChangeDataFeed = true: changes are recorded from "
        "then on. Bring the output up to the table by a batch run (input.change_feed = false), and "
        "read the changes since, with a new input.checkpoint_location or a later startingVersion."
    )


def _checked(load: Callable[[], DataFrame], name: str) -> DataFrame:
    failure = f"The changes of {redacted(name)} cannot be read"
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
