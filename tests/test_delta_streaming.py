"""Delta tables that are read on from where the last run ended: their rows, and their changes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.delta_driver import Driver, session
from tests.frames import to_arrow
from tests.test_delta_target import check_rows, read
from tests.trace import Trace

pytestmark = pytest.mark.delta

TEXTS = {number: f"Text number {number}." for number in range(40)}


@pytest.fixture
def docs(driver: Driver, tmp_path: Path) -> str:
    """A Delta table of id and body with a change data feed, as SQL knows it."""
    name = f"delta.`{tmp_path / 'docs'}`"
    driver.sql(
        f"CREATE TABLE {name} (id BIGINT, body STRING) USING delta "
        "TBLPROPERTIES ('delta.enableChangeDataFeed' = 'true')"
    )
    driver(add, str(tmp_path / "docs"), TEXTS)
    return name


@pytest.fixture
def embed(
    driver: Driver, tmp_path: Path, model: str, job_file: Callable[..., str], trace: Trace
) -> Callable[..., Mapping[str, Any]]:
    """Runs the job over the new commits of docs; returns the report and the count of model rows."""
    sections: dict[str, dict[str, Any]] = {
        "input": {
            "path": str(tmp_path / "docs"),
            "format": "delta",
            "id": "id",
            "trigger": "available_now",
            "checkpoint_location": str(tmp_path / "checkpoint"),
        },
        "embed": {"text": "body", "role": "passage"},
        "model": {"name": model},
        "output": {"path": str(tmp_path / "out"), "format": "delta"},
        "run": {"chunk_rows": 20, "partitions": 1, "concurrent_chunks": 1},
    }

    def run(*overrides: str, at: str = "") -> Mapping[str, Any]:
        trace.mark()
        file = job_file(**sections)
        if at:
            driver.killed(file, *overrides, at=at)
            return {"model_rows": trace.rows()}
        outcome = driver.job(file, *overrides)
        return {**outcome.document, "code": outcome.code, "model_rows": trace.rows()}

    return run


CHANGES = ("input.change_feed=true", "run.delete_missing=true")


def add(path: str, texts: Mapping[int, str], mode: str = "append", files: int = 1) -> None:
    rows = session().createDataFrame(list(texts.items()), "id BIGINT, body STRING")
    rows.repartition(files).write.format("delta").mode(mode).save(path)


def test_rows_that_are_appended_are_embedded_once(
    driver: Driver, docs: str, embed: Callable[..., Any], tmp_path: Path, model: str
) -> None:
    report = embed()
    assert (report["code"], report["micro_batches"], report["model_rows"]) == (0, 1, 40)
    assert embed()["rows_in"] == 0
    more = {number: f"Text number {number}." for number in range(40, 60)}
    driver(add, str(tmp_path / "docs"), more)
    report = embed()
    assert (report["rows_in"], report["embedded"], report["model_rows"]) == (20, 20, 20)
    check_rows(read(driver, tmp_path / "out"), TEXTS | more, model)


def test_a_change_in_a_stream_of_rows_is_refused_and_says_what_to_do(
    driver: Driver, docs: str, embed: Callable[..., Any], tmp_path: Path, model: str
) -> None:
    assert embed()["code"] == 0
    driver.sql(f"UPDATE {docs} SET body = 'Another text.' WHERE id < 5")
    refused = embed()
    assert (refused["code"], refused["error"], refused["model_rows"]) == (3, "InputError", 0)
    assert "Set input.change_feed = true" in refused["message"]
    assert "DELTA_SOURCE_TABLE_IGNORE_CHANGES" in refused["message"]
    check_rows(read(driver, tmp_path / "out"), TEXTS, model)
    # The same checkpoint goes on, now with the changes.
    assert embed("input.change_feed=true")["model_rows"] == 5
    changed = dict.fromkeys(range(5), "Another text.")
    check_rows(read(driver, tmp_path / "out"), TEXTS | changed, model)


def test_changes_that_the_user_skips_are_skipped(
    driver: Driver, docs: str, embed: Callable[..., Any], tmp_path: Path, model: str
) -> None:
    assert embed()["code"] == 0
    driver.sql(f"DELETE FROM {docs} WHERE id < 5")
    driver(add, str(tmp_path / "docs"), {50: "A new text."})
    report = embed("input.options.skipChangeCommits=true")
    assert (report["code"], report["model_rows"]) == (0, 1)
    check_rows(read(driver, tmp_path / "out"), TEXTS | {50: "A new text."}, model)


@pytest.mark.parametrize("output", ["delta", "parquet"])
def test_a_feed_brings_updates_and_deletions_of_many_commits(
    driver: Driver,
    docs: str,
    embed: Callable[..., Any],
    tmp_path: Path,
    model: str,
    output: str,
) -> None:
    settings = (*CHANGES, f"output.format={output}")
    report = embed(*settings)
    assert (report["code"], report["model_rows"], report["deleted"]) == (0, 40, 0)
    for change in (
        f"UPDATE {docs} SET body = 'For a moment.' WHERE id < 9",
        f"UPDATE {docs} SET body = 'Another text.' WHERE id < 5",
        f"DELETE FROM {docs} WHERE id BETWEEN 3 AND 6",
        f"INSERT INTO {docs} VALUES (3, 'Back again.'), (77, 'Not for long.'), (78, 'New.')",
        f"DELETE FROM {docs} WHERE id = 77",
        f"UPDATE {docs} SET id = 100 WHERE id = 39",
        f"UPDATE {docs} SET body = '{TEXTS[20]}' WHERE id = 20",
    ):
        driver.sql(change)
    wanted = {**TEXTS, **dict.fromkeys(range(3), "Another text."), 3: "Back again."}
    wanted |= {7: "For a moment.", 8: "For a moment.", 78: "New.", 100: TEXTS[39]}
    wanted = {id: text for id, text in wanted.items() if id not in (4, 5, 6, 39)}
    report = embed(*settings)
    assert (report["code"], report["deleted"], report["model_rows"]) == (0, 4, 8)
    assert (report["rows_in"], report["skipped"]) == (9, 1)
    assert embed(*settings)["rows_in"] == 0
    table = driver(rows_of, str(tmp_path / "out"), output)
    check_rows(table, wanted, model)


def rows_of(path: str, format: str) -> Any:
    return to_arrow(session().read.format(format).load(path))


def test_deleted_rows_stay_unless_delete_missing_is_set(
    driver: Driver, docs: str, embed: Callable[..., Any], tmp_path: Path, model: str
) -> None:
    assert embed("input.change_feed=true")["code"] == 0
    driver.sql(f"DELETE FROM {docs} WHERE id < 5")
    report = embed("input.change_feed=true")
    assert (report["code"], report["deleted"], report["rows_in"]) == (0, 0, 0)
    check_rows(read(driver, tmp_path / "out"), TEXTS, model)


def test_a_table_that_is_overwritten_keeps_the_rows_that_came_with_it(
    driver: Driver, docs: str, embed: Callable[..., Any], tmp_path: Path, model: str
) -> None:
    assert embed(*CHANGES)["code"] == 0
    texts = {id: f"Written anew: {id}." for id in range(10, 60)}
    driver(add, str(tmp_path / "docs"), texts, "overwrite", 5)
    report = embed(*CHANGES)
    assert (report["code"], report["deleted"], report["model_rows"]) == (0, 10, 50)
    check_rows(read(driver, tmp_path / "out"), texts, model)


@pytest.mark.chaos
@pytest.mark.parametrize(
    "at",
    [
        "recorded:1",
        pytest.param("replacing", marks=pytest.mark.chaos_sample),
        "publishing:2",
    ],
)
def test_a_run_killed_in_a_micro_batch_of_changes_loses_and_doubles_nothing(
    driver: Driver, docs: str, embed: Callable[..., Any], tmp_path: Path, model: str, at: str
) -> None:
    assert embed(*CHANGES)["code"] == 0
    driver.sql(f"UPDATE {docs} SET body = concat('Another ', id) WHERE id < 10")
    driver.sql(f"DELETE FROM {docs} WHERE id > 35")
    driver(add, str(tmp_path / "docs"), {50: "A new text."})
    wanted = {id: f"Another {id}" if id < 10 else text for id, text in TEXTS.items() if id <= 35}
    before = embed(*CHANGES, at=at)["model_rows"]
    report = embed(*CHANGES)
    assert (report["code"], before + report["model_rows"]) == (0, 11)
    check_rows(read(driver, tmp_path / "out"), wanted | {50: "A new text."}, model)
    assert embed(*CHANGES)["rows_in"] == 0


def test_a_batch_run_reads_the_changes_since_a_version(
    driver: Driver, docs: str, embed: Callable[..., Any], tmp_path: Path, model: str
) -> None:
    batch = ("input.trigger=batch",)
    assert embed(*batch)["code"] == 0
    driver.sql(f"UPDATE {docs} SET body = 'Another text.' WHERE id < 5")
    driver.sql(f"DELETE FROM {docs} WHERE id = 7")
    since = (*batch, *CHANGES, "input.options.startingVersion=2")
    report = embed(*since)
    assert (report["code"], report["rows_in"], report["deleted"], report["model_rows"]) == (
        0,
        5,
        1,
        5,
    )
    report = embed(*since)
    assert (report["code"], report["deleted"], report["model_rows"]) == (0, 0, 0)
    wanted = {**TEXTS, **dict.fromkeys(range(5), "Another text.")}
    wanted.pop(7)
    check_rows(read(driver, tmp_path / "out"), wanted, model)


@pytest.mark.parametrize("trigger", ["batch", "available_now"])
def test_a_table_that_recorded_no_changes_is_refused_and_says_what_to_do(
    driver: Driver, embed: Callable[..., Any], tmp_path: Path, trigger: str
) -> None:
    driver(add, str(tmp_path / "docs"), TEXTS)
    settings = ["input.change_feed=true", f"input.trigger={trigger}"]
    settings += ["input.options.startingVersion=0"]
    refused = embed(*settings)
    assert (refused["code"], refused["error"], refused["model_rows"]) == (3, "InputError", 0)
    assert "delta.enableChangeDataFeed = true" in refused["message"]


def test_catalog_tables_are_read_by_name(
    driver: Driver, docs: str, embed: Callable[..., Any], tmp_path: Path, model: str
) -> None:
    driver.sql(f"CREATE TABLE fed USING delta LOCATION '{tmp_path / 'docs'}'")
    try:
        by_name = ("input.path=", "input.table=fed", "input.format=parquet", *CHANGES)
        assert embed(*by_name)["model_rows"] == 40
        driver.sql("UPDATE fed SET body = 'Another text.' WHERE id = 3")
        driver.sql("DELETE FROM fed WHERE id = 4")
        report = embed(*by_name)
        assert (report["code"], report["deleted"], report["model_rows"]) == (0, 1, 1)
        wanted = {**TEXTS, 3: "Another text."}
        wanted.pop(4)
        check_rows(read(driver, tmp_path / "out"), wanted, model)
    finally:
        driver.sql("DROP TABLE fed")


def test_a_table_without_a_feed_is_refused(
    driver: Driver, embed: Callable[..., Any], tmp_path: Path
) -> None:
    driver.sql("CREATE TABLE plain USING parquet AS SELECT 1 AS id, 'One text.' AS body")
    try:
        refused = embed("input.path=", "input.table=plain", "input.format=parquet", *CHANGES)
        assert (refused["code"], refused["model_rows"]) == (3, 0)
        assert "has no change data feed" in refused["message"]
    finally:
        driver.sql("DROP TABLE plain")
