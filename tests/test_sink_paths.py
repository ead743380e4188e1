"""Which outputs a run may write to, and with which options."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from pyspark.sql.types import ArrayType, LongType, MapType, StringType, StructType

from e5spark.errors import ConfigError, ConflictError, InputError
from e5spark.tables.sinks.catalog import sql_type
from e5spark.tables.sinks.files import check_options
from e5spark.tables.sinks.paths import check_apart, check_path, check_path_free
from e5spark.tables.sinks.registry import SINKS


@pytest.mark.parametrize("path", ["/out/a[b", "a*b", "a?b", "{a", "a}", "a]", "a\\b"])
def test_an_output_path_that_spark_reads_as_a_pattern_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="which Spark reads as a pattern"):
        check_path(path)


@pytest.mark.parametrize("path", ["", "/out/a b", "s3a://b/x=1/y", "C:/x", "öut", "a,b", "a%20b"])
def test_any_other_output_path_is_allowed(path: str) -> None:
    check_path(path)


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zzz"},
        {"Compression": ""},
        {"maxRecordsPerFile": "many"},
        {"parquet.block.size": "-1"},
    ],
)
def test_a_writer_option_that_cannot_work_is_refused_before_a_run(
    options: Mapping[str, str],
) -> None:
    with pytest.raises(ConfigError, match=r"^output\.options\.\S+ is '.*'; it must be "):
        check_options(options)


def test_other_writer_options_are_spark_s() -> None:
    check_options({"compression": "GZIP", "maxRecordsPerFile": "10", "anything": "zzz"})


@pytest.mark.parametrize("format", SINKS)
def test_a_sink_is_registered_under_its_kind(format: str) -> None:
    assert SINKS[format]().kind == format  # type: ignore[attr-defined]


def test_no_credential_is_in_the_message_of_a_path() -> None:
    with pytest.raises(ConfigError) as pattern:
        check_path("s3a://KEY:SECRET@b/a*")
    with pytest.raises(InputError) as overlap:
        check_apart("s3a://KEY:SECRET@b/a", "s3a://KEY:SECRET@b/a/out")
    assert "SECRET" not in f"{pattern.value} {overlap.value}"


def test_an_empty_directory_is_free_and_a_file_or_a_full_one_is_not(
    spark: SparkSession, tmp_path: Path
) -> None:
    check_path_free(spark, str(tmp_path))
    check_path_free(spark, str(tmp_path / "none"))
    file = tmp_path / "_file"
    file.touch()
    for path in (tmp_path, file):
        with pytest.raises(ConflictError, match="already exists and was not written by e5spark"):
            check_path_free(spark, str(path))


def test_the_names_of_nested_fields_are_quoted_in_sql() -> None:
    inner = StructType().add("a b: int> COMMENT 'x", "string").add("`", ArrayType(LongType()))
    schema = StructType().add("x", MapType(StringType(), inner))
    assert sql_type(schema) == (
        "struct<`x`: map<string, struct<`a b: int> COMMENT 'x`: string, ````: array<bigint>>>>"
    )
