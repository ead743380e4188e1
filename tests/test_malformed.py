"""Which readers stop at a malformed record, and how they read it without Spark's logging it."""

import pytest
from pyspark.sql.types import LongType, StringType, StructType

from e5spark.errors import InputError
from e5spark.tables.sources import malformed
from e5spark.tables.sources.batch import READERS

COLUMNS = StructType().add("id", LongType()).add("body", StringType())


@pytest.mark.parametrize(
    ("format", "options", "fatal"),
    [
        ("csv", {}, True),
        ("jsonl", {}, True),
        ("parquet", {}, False),
        ("text", {}, False),
        ("csv", {"mode": "failfast"}, True),
        ("csv", {"mode": "PERMISSIVE"}, False),
        ("jsonl", {"MODE": "DROPMALFORMED"}, False),
        ("jsonl", {"columnNameOfCorruptRecord": "bad"}, False),
    ],
)
def test_csv_and_json_stop_at_a_malformed_record_unless_the_options_say_otherwise(
    format: str, options: dict[str, str], fatal: bool
) -> None:
    assert malformed.is_fatal({**READERS[format][1], **options}) == fatal


def test_a_malformed_record_is_read_into_a_column_of_its_own() -> None:
    options = malformed.recording({"header": "true", "Mode": "FAILFAST"})
    assert options["mode"] == "PERMISSIVE"
    assert "Mode" not in options
    name = options["columnNameOfCorruptRecord"]
    for inferred in (COLUMNS, StructType().add(name, StringType()).add(COLUMNS["id"])):
        schema = malformed.recording_schema(inferred, "/docs")
        assert schema.names[-1] == name
        assert schema.names.count(name) == 1


def test_a_file_without_a_record_that_parses_is_refused_by_its_path() -> None:
    only = StructType().add(malformed.recording({})["columnNameOfCorruptRecord"], StringType())
    with pytest.raises(InputError, match="The input s3a://b/docs cannot be read: every record"):
        malformed.recording_schema(only, "s3a://KEY:SECRET@b/docs")
