"""The rules for keys of a job that depend on each other."""

from functools import partial

import pytest

from tests import minimal_job
from tests.minimal_job import refusal


@pytest.fixture
def load(tmp_path):
    return partial(minimal_job.load, tmp_path)


@pytest.mark.parametrize("key", ["input.path", "input.checkpoint_location", "output.path"])
def test_a_path_has_no_credentials_which_spark_would_log(load, key):
    message = refusal(load, f"{key}=s3a://KEY:SECRET@bucket/docs")
    assert f"{key} has a user and a password" in message
    assert "s3a://bucket/docs" in message
    assert "SECRET" not in message


@pytest.mark.parametrize("value", ["-0.1", "1.1", "nan"])
def test_an_error_rate_is_a_share(load, value):
    assert "a share from 0 to 1" in refusal(load, f"run.max_error_rate={value}")


@pytest.mark.parametrize(
    ("key", "least"),
    [("partitions", 0), ("chunk_rows", 0), ("concurrent_chunks", 1), ("file_megabytes", 0)],
)
def test_a_count_is_not_too_small(load, key, least):
    assert f"it must be {least} or more" in refusal(load, f"run.{key}={least - 1}")


def test_files_of_a_size_are_not_for_texts_that_are_split(load):
    message = refusal(load, "run.file_megabytes=1", "model.long_text=split")
    assert "run.file_megabytes cannot be used with model.long_text" in message


@pytest.mark.parametrize("ids", ["input.id=id", "input.hash_id=true"])
def test_what_needs_ids_is_refused_without(load, ids):
    for override, expected in {
        "input.on_duplicate=first": "set input.id or input.hash_id",
        "run.delete_missing=true": "run.delete_missing needs to know what is missing",
    }.items():
        load(ids, override)
        assert expected in refusal(load, override)


def test_an_id_is_a_column_or_a_hash_and_not_both(load):
    assert "give one of them" in refusal(load, "input.id=id", "input.hash_id=true")


COLUMNS = [
    "input.path=/t",
    "input.format=delta",
    "input.id=id",
    "output.path=/t",
    "output.format=delta",
    "output.write=columns",
]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("output.path=/other", "give the same path or table in [input] and [output]"),
        ("input.format=parquet", 'is for tables of format "delta"'),
        ("output.format=parquet", 'is for tables of format "delta"'),
        ("input.id=", "needs input.id"),
        ('input.columns=["a"]', 'input.columns is for output.write = "rows"'),
        ("run.delete_missing=true", 'run.delete_missing is for output.write = "rows"'),
        ("model.long_text=split", "model.long_text = split is for"),
    ],
)
def test_columns_of_the_input_table_keep_its_rows(load, override, expected):
    assert load(*COLUMNS).output.write == "columns"
    assert expected in refusal(load, *COLUMNS, override)


STREAM = ["input.id=id", "input.trigger=available_now", "input.checkpoint_location=/c"]
CHANGES = [*STREAM, "input.change_feed=true", "input.format=delta"]


@pytest.mark.parametrize(
    ("settings", "override", "expected"),
    [
        (STREAM, "input.checkpoint_location=", "needs input.checkpoint_location"),
        (STREAM, "input.id=", "needs input.id (or input.hash_id = true)"),
        (STREAM, "run.delete_missing=true", "which do not show what was deleted"),
        (STREAM, "input.options.readChangeFeed=true", "set input.change_feed = true"),
        (CHANGES, "input.format=parquet", "the change data feed of a Delta table"),
        (CHANGES, "input.id=", "a column that keeps its value"),
        (CHANGES, "input.options.maxFilesPerTrigger=5", "may split a commit"),
        (CHANGES, "input.options.MAXBYTESPERTRIGGER=5", "may split a commit"),
        (COLUMNS, "input.change_feed=true", "input.change_feed needs startingVersion or"),
        ([*CHANGES, *COLUMNS[:1], *COLUMNS[3:5]], COLUMNS[5], "input.trigger is for output.write"),
    ],
)
def test_an_incremental_input_needs_ids_and_a_checkpoint_location(
    load, settings, override, expected
):
    load(*settings)
    assert expected in refusal(load, *settings, override)


def test_a_change_feed_needs_where_it_begins(load):
    batch = ["input.id=id", "input.change_feed=true", "input.format=delta"]
    assert "needs startingVersion or startingTimestamp" in refusal(load, *batch)
    for option in ("startingVersion=3", "startingTimestamp=2026-01-01"):
        assert load(*batch, f"input.options.{option}").input.change_feed
    assert load(*CHANGES, "run.delete_missing=true").run.delete_missing


@pytest.mark.parametrize("override", ["input.change_feed=true", "input.trigger=available_now"])
def test_a_catalog_table_has_options_only_where_its_commits_are_read(load, override):
    by_name = ["input.path=", "input.table=db.docs", "input.id=id"]
    option = "input.options.startingVersion=3"
    checkpoint = ["input.checkpoint_location=/c"] if "available_now" in override else []
    assert load(*by_name, override, option, *checkpoint).input.options
    assert "are for path, not for table" in refusal(load, *by_name, option)


@pytest.mark.parametrize("section", ["input", "output"])
def test_a_table_has_a_path_or_a_name_and_not_both(load, section):
    by_name = load(f"{section}.path=", f"{section}.table=db.docs")
    assert getattr(by_name, section).table == "db.docs"
    expected = f"[{section}] needs either path or table, and not both."
    assert expected in refusal(load, f"{section}.table=db.docs")
    assert expected in refusal(load, f"{section}.path=")


def test_the_role_is_a_constant_or_a_column_and_not_both(load):
    by_column = load("embed.role=", "embed.role_column=kind").embed
    assert (by_column.role, by_column.role_column) == ("", "kind")
    assert "needs either role" in refusal(load, "embed.role_column=kind")
    assert "needs either role" in refusal(load, "embed.role=")


def test_the_instruction_is_a_constant_or_a_column_and_not_both(load):
    message = refusal(load, "embed.instruction=Find it", "embed.instruction_column=task")
    assert "has instruction and instruction_column" in message
