"""Malformed records of CSV and JSON files: they stop a job, and no log shows them.

In Spark's mode FAILFAST the error quotes the whole record, and executors log it. Instead, a record
that does not parse is read into a column of its own, and a task that meets one fails.
"""

from collections.abc import Mapping

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructType

from e5spark.errors import InputError
from e5spark.names import RESERVED, quoted, redacted

_RECORD = f"{RESERVED}_record"
_COLUMN_OPTION = "columnNameOfCorruptRecord"


def is_fatal(options: Mapping[str, str]) -> bool:
    """Returns whether a malformed record stops a reader with these options."""
    values = {key.lower(): value for key, value in options.items()}
    return values.get("mode", "").upper() == "FAILFAST" and _COLUMN_OPTION.lower() not in values


def recording(options: Mapping[str, str]) -> dict[str, str]:
    """Returns the options with which a reader puts malformed records into a column."""
    without_mode = {key: value for key, value in options.items() if key.lower() != "mode"}
    return {**without_mode, "mode": "PERMISSIVE", _COLUMN_OPTION: _RECORD}


def recording_schema(schema: StructType, path: str) -> StructType:
    """Returns a schema with the column of malformed records, whether or not Spark inferred it.

    Raises:
        InputError: If every record is malformed.
    """
    columns = [field for field in schema if field.name != _RECORD]
    if len(schema) and not columns:
        raise InputError(
            f"The input {redacted(path)} cannot be read: every record is malformed. Check its "
            "format, and input.format."
        )
    return StructType(columns).add(_RECORD, StringType())


def refused(df: DataFrame) -> DataFrame:
    """Returns rows without the column of malformed records; a job that reads one fails.

    The error is an InputError inside Spark's; it names the file.
    """
    columns = [name for name in df.columns if name != _RECORD]
    if not columns:
        return df.drop(_RECORD)
    message = F.concat(
        F.lit("\ne5spark.errors.InputError: The input cannot be read: "),
        F.input_file_name(),
        F.lit(
            " has a malformed record. Correct it, or set input.options.mode = 'DROPMALFORMED' to "
            "skip such records.\n"
        ),
    )
    # Spark refuses queries of this column alone, such as a count: the hash reads another, too.
    is_malformed = F.col(_RECORD).isNotNull() & (F.xxhash64(F.col(quoted(columns[0]))) != 0)
    guard = F.when(is_malformed, F.raise_error(message).cast("boolean")).otherwise(F.lit(True))
    return df.filter(guard).drop(_RECORD)
