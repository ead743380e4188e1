"""Incremental input: a stream of the new rows of a table, which ends when all are read."""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from queue import Empty, Queue

from pyspark.errors import PySparkAttributeError
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.streaming.readwriter import DataStreamReader

from e5spark.errors import E5SparkError, InputError
from e5spark.names import redacted
from e5spark.tables.sources import batch, malformed
from e5spark.tables.sources import change_feed as feed
from e5spark.tables.spark_errors import condition, reason, spark_errors, translated

# Spark's defaults lose rows or repeat work. They silently skip files more than a week older than
# the newest. And they may cut a commit in two: for an overwritten Delta table with a change data
# feed, the new rows come first and the deletions of the old rows in a later part.
_FILES = {"maxFileAge": "36500d"}
_DELTA = {"maxFilesPerTrigger": str((1 << 31) - 1)}
_POLL = 0.1  # seconds
_CAUSE = re.compile(r"terminated with exception: (?P<cause>.)")
_CHANGED = {
    "DELTA_SOURCE_IGNORE_DELETE",
    "DELTA_SOURCE_TABLE_IGNORE_CHANGES",
    "DELTA_SOURCE_IGNORE_CHANGES",
}


def check_session(spark: SparkSession) -> None:
    """Checks that the session can run this process's code on each part of a stream.

    Raises:
        InputError: If this is a Spark Connect session.
    """
    try:
        _ = spark._jvm
    except PySparkAttributeError as error:
        raise InputError(
            'input.trigger = "available_now" does not work over Spark Connect, whose server would '
            "have to run this job. Start the job with spark-submit, in a classic session."
        ) from error


def open_path(
    spark: SparkSession,
    path: str,
    *,
    format: str,
    schema: str = "",
    options: Mapping[str, str],
    changes: bool,
) -> DataFrame:
    """Returns a stream of the files of a directory, or of a Delta table's rows or changes.

    Args:
        spark: The session.
        path: A directory, or a glob; not a single file.
        format: As for ``batch.read_path``.
        schema: As for ``batch.read_path``.
        options: Spark's reader options; they win over e5spark's.
        changes: Whether a Delta table's change data feed is read.

    Raises:
        InputError: If it does not exist, or Spark cannot read it.
    """
    if format == "delta":
        reader = _reader(spark, {**_DELTA, **options}, changes).format("delta")
        return _opened(lambda: reader.load(path), path)
    # The columns are the same as in a batch run.
    columns = batch.read_path(spark, path, format=format, schema=schema, options=options).schema
    name, defaults = batch.READERS[format]
    settings = {**_FILES, **defaults, **options}
    if malformed.is_fatal(settings):
        reader = _reader(spark, malformed.recording(settings), changes).format(name)
        recorded = malformed.recording_schema(columns, path)
        return _opened(lambda: malformed.refused(reader.schema(recorded).load(path)), path)
    reader = _reader(spark, settings, changes).format(name)
    return _opened(lambda: reader.schema(columns).load(path), path)


def open_table(
    spark: SparkSession, name: str, *, options: Mapping[str, str], changes: bool
) -> DataFrame:
    """Returns a stream of a catalog table's rows or changes.

    Raises:
        InputError: If the catalog has no table of this name, or Spark cannot read it.
    """
    reader = _reader(spark, {**_FILES, **_DELTA, **options}, changes)
    df = _opened(lambda: reader.table(name), name)
    return feed.check(df, name) if changes else df


def drain(
    stream: DataFrame, *, name: str, checkpoint: str, process: Callable[[DataFrame], None]
) -> None:
    """Reads all new rows, in one part or several; the next call continues from there.

    Args:
        stream: The stream.
        name: What the user calls it.
        checkpoint: The directory in which Spark notes which parts were processed.
        process: Processes a part. If it raises, the next call reads the part again.

    Raises:
        InputError: If the stream cannot be read.
    """
    parts: Queue[DataFrame] = Queue()
    outcomes: Queue[bool] = Queue()

    # Spark's thread only hands a part over: in the caller's thread errors keep their class and
    # Ctrl-C works.
    def hand_over(part: DataFrame, number: int) -> None:
        parts.put(part)
        if not outcomes.get():
            raise RuntimeError("This part was not processed; the run says why.")

    try:
        writer = stream.writeStream.foreachBatch(hand_over).trigger(availableNow=True)
        query = writer.option("checkpointLocation", checkpoint).start()
    except Exception as error:  # py4j has errors that PySpark does not wrap
        raise _failure(name, error) from error
    try:
        while query.isActive or not parts.empty():
            with suppress(Empty):
                process(parts.get(timeout=_POLL))
                outcomes.put(True)
    finally:
        outcomes.put(False)
        query.stop()
    failure = query.exception()
    if failure is not None:
        raise _failure(name, failure) from failure


def _reader(spark: SparkSession, options: Mapping[str, str], changes: bool) -> DataStreamReader:
    return spark.readStream.options(**{**options, **({feed.OPTION: "true"} if changes else {})})


def _opened(load: Callable[[], DataFrame], name: str) -> DataFrame:
    with spark_errors(f"{name} cannot be read as a stream", otherwise=InputError):
        df = load()
        _ = df.schema
    return df


def _failure(name: str, error: Exception) -> E5SparkError:
    failure = f"{redacted(name)} cannot be read as a stream"
    match = _CAUSE.search(str(error))
    # From the cause on: the error itself says only that the stream failed.
    cause = Exception(str(error)[match.start("cause") :]) if match else error
    cause_name = condition(cause)
    if cause_name in _CHANGED:
        return InputError(
            f"Rows of {redacted(name)} were updated or deleted, which a stream of rows does not "
            f"show: {reason(cause)} Set input.change_feed = true if the table's change data feed "
            "was on then; or bring the output up to date with a batch run and give a new "
            "input.checkpoint_location."
        )
    translation = translated(cause, failure) or translated(error, failure)
    return translation or InputError(f"{failure}: {reason(cause)} {feed.advice(cause_name)}")
