"""Columns of vectors in the user's own Delta table: nothing else of it changes."""

import contextlib
import io
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from e5spark.cli import main
from e5spark.tables.ledger.lock import acquire
from e5spark.tables.sinks.delta_table import delta_name
from e5spark.tables.storage.local import LocalStorage
from tests.delta_driver import Driver, actions, delta_rs, session
from tests.frames import from_arrow
from tests.oracle import FP32_TOLERANCE, assert_close, reference
from tests.trace import Trace

pytestmark = pytest.mark.delta

ADDED = ["embedding", "n_tokens", "truncated", "already_prompted", "status", "error"]
ADDED += ["content_hash", "embedding_fp"]


@pytest.fixture
def table(driver: Driver, tmp_path: Path) -> str:
    """A table of 60 rows of id, body and a column that is nobody's business."""
    driver(create, str(tmp_path / "docs"))
    return delta_name(str(tmp_path / "docs"))


def create(path: str) -> None:
    texts = [f"Text number {number}." for number in range(60)]
    rows = pa.table({"id": range(60), "body": texts, "other": [{"a": n} for n in range(60)]})
    from_arrow(session(), rows).repartition(3).write.format("delta").save(path)


@pytest.fixture
def job(tmp_path: Path, model: str, job_file: Callable[..., str]) -> Callable[..., str]:
    """From a path or a catalog table to a job file."""

    def write(place: Mapping[str, str] | None = None) -> str:
        where = place or {"path": str(tmp_path / "docs"), "format": "delta"}
        return job_file(
            input={**where, "id": "id"},
            embed={"text": "body", "role": "passage"},
            model={"name": model},
            output={**where, "format": "delta", "write": "columns"},
            run={"chunk_rows": 25, "partitions": 1},
        )

    return write


def rows_of(driver: Driver, table: str) -> list[dict[str, Any]]:
    return driver.sql(f"SELECT * FROM {table} ORDER BY id")


def check(rows: list[dict[str, Any]], model: str) -> None:
    """Each row has its own vector."""
    vectors = np.array([row["embedding"] for row in rows], np.float32)
    bodies = tuple(row["body"] for row in rows)
    assert_close(vectors, reference(model, bodies, prompt="passage: "), FP32_TOLERANCE)


def test_columns_are_added_and_refreshed_and_nothing_else_changes(
    driver: Driver, job: Callable[..., str], table: str, tmp_path: Path, model: str, trace: Trace
) -> None:
    before = rows_of(driver, table)
    outcome = driver.job(job())
    assert (outcome.code, trace.rows()) == (0, 60), outcome
    rows = rows_of(driver, table)
    check(rows, model)
    assert list(rows[0]) == [*before[0], *ADDED]
    assert [{name: row[name] for name in before[0]} for row in rows] == before
    # The user's properties and protocol are as they were, and one commit wrote all vectors.
    properties = [action["configuration"] for action in actions(tmp_path / "docs", "metaData")]
    assert properties == [{}, {}]
    assert len(list(actions(tmp_path / "docs", "protocol"))) == 1
    operations = [action["operation"] for action in actions(tmp_path / "docs", "commitInfo")]
    assert operations == ["WRITE", "ADD COLUMNS", "MERGE"]

    trace.mark()
    assert driver.job(job()).code == 0
    assert trace.rows() == 0
    export = ["export", job(), "--columns=other"]
    assert driver(command, [*export, f"--to={tmp_path}/first"])["new"] == 60
    assert len(list(actions(tmp_path / "docs", "commitInfo"))) == 3

    driver.sql(f"UPDATE {table} SET body = concat('Changed ', id) WHERE id < 7")
    driver.sql(f"UPDATE {table} SET other = named_struct('a', 0L) WHERE id > 50")
    driver.sql(f"DELETE FROM {table} WHERE id = 30")
    driver.sql(f"INSERT INTO {table} (id, body) VALUES (60, 'A new text.')")
    trace.mark()
    outcome = driver.job(job())
    # `other` is where it is: a change in it alone leaves nothing to do.
    assert (outcome.code, outcome.document["refreshed"], trace.rows()) == (0, 0, 8)
    rows = rows_of(driver, table)
    assert [row["other"] for row in rows[50:]] == [{"a": 0}] * 9 + [None]
    assert len(rows) == 60
    check(rows, model)
    changes = driver(command, [*export, f"--to={tmp_path}/next", f"--since={tmp_path}/first"])
    kinds = [changes[kind] for kind in ("new", "changed", "unchanged", "deleted")]
    assert kinds == [1, 16, 43, 1]
    exported = pq.read_table(tmp_path / "next" / "vectors")["id"].to_pylist()
    assert sorted(exported) == [*range(7), *range(51, 61)]
    assert pq.read_table(tmp_path / "next" / "deleted")["id"].to_pylist() == [30]
    driver.sql(f"INSERT INTO {table} (id, body) VALUES (61, 'A text of tomorrow.')")
    status = driver.job(job(), command="status").document
    counts = status["rows_by_status"]["embedding"]
    assert (status["rows"], counts["ok"], counts["not_embedded"]) == (61, 60, 1)
    assert (status["kind"], status["problems"]) == ("columns of a delta", [])
    driver.sql(f"DELETE FROM {table} WHERE id = 61")
    theirs = delta_rs(tmp_path / "docs", tmp_path).sort_by("id").to_pylist()
    assert [row["embedding"] for row in theirs] == [row["embedding"] for row in rows]


@pytest.mark.chaos_sample
def test_a_row_that_changes_while_it_is_embedded_gets_no_stale_vector(
    driver: Driver, job: Callable[..., str], table: str, model: str, trace: Trace
) -> None:
    driver.killed(job(), at="replacing")  # all is embedded, and nothing is in the table yet
    driver.sql(f"UPDATE {table} SET body = concat('Changed ', id) WHERE id < 7")
    driver.sql(f"DELETE FROM {table} WHERE id = 30")
    trace.mark()
    outcome = driver.job(job())
    # All that was embedded is in the table, except the rows that have changed since.
    assert (outcome.code, outcome.document["recovered"], trace.rows()) == (0, 60, 7)
    rows = rows_of(driver, table)
    assert len(rows) == 59
    check(rows, model)


def test_an_append_only_table_gets_no_columns(
    driver: Driver, job: Callable[..., str], table: str
) -> None:
    driver.sql(f"ALTER TABLE {table} SET TBLPROPERTIES ('delta.appendOnly' = 'true')")
    outcome = driver.job(job())
    assert outcome.code == 5
    assert "is append-only (delta.appendOnly = true)" in outcome.document["message"]
    assert set(ADDED).isdisjoint(rows_of(driver, table)[0])


@pytest.mark.chaos_sample
def test_a_run_killed_after_its_merge_does_nothing_twice(
    driver: Driver, job: Callable[..., str], table: str, tmp_path: Path, model: str, trace: Trace
) -> None:
    driver.killed(job(), at="publishing")
    outcome = driver.job(job())
    assert (outcome.code, trace.rows()) == (0, 60)
    assert "Delta skipped" in outcome.log
    check(rows_of(driver, table), model)
    operations = [action["operation"] for action in actions(tmp_path / "docs", "commitInfo")]
    assert operations == ["WRITE", "ADD COLUMNS", "MERGE"]


def test_a_catalog_table_gets_columns_by_name(
    driver: Driver, job: Callable[..., str], table: str, model: str
) -> None:
    driver.sql(f"CREATE TABLE mine USING delta AS SELECT * FROM {table}")
    assert driver.job(job({"table": "mine"})).code == 0
    check(rows_of(driver, "mine"), model)


def test_columns_of_these_names_that_are_not_ours_are_left_alone(
    driver: Driver, job: Callable[..., str], table: str, trace: Trace
) -> None:
    driver.sql(f"ALTER TABLE {table} ADD COLUMNS (Status STRING)")
    before = rows_of(driver, table)
    outcome = driver.job(job())
    assert (outcome.code, trace.rows()) == (5, 0)
    assert "already has a column 'Status'" in outcome.document["message"]
    assert rows_of(driver, table) == before


def test_vectors_of_another_model_are_refused(
    driver: Driver, job: Callable[..., str], table: str, trace: Trace
) -> None:
    assert driver.job(job()).code == 0
    trace.mark()
    outcome = driver.job(job(), "model.max_tokens=64")
    assert (outcome.code, trace.rows()) == (5, 0)
    assert "max_tokens is 512, this run's is 64" in outcome.document["message"]


@pytest.mark.parametrize("override", ['embed.column_prefix="b_"', "model.max_tokens=64"])
def test_a_job_that_is_refused_adds_no_column(
    driver: Driver, job: Callable[..., str], table: str, override: str
) -> None:
    assert driver.job(job()).code == 0
    before = rows_of(driver, table)
    assert driver.job(job(), override).code == 5
    assert rows_of(driver, table) == before


def test_a_job_that_does_not_get_the_lock_adds_no_column(
    driver: Driver, job: Callable[..., str], table: str, tmp_path: Path
) -> None:
    before = rows_of(driver, table)
    with acquire(LocalStorage("", tmp_path / "docs")):
        outcome = driver.job(job())
    assert outcome.code == 5
    assert "Another run writes to" in outcome.document["message"]
    assert rows_of(driver, table) == before


def test_vectors_of_an_unknown_commit_are_left_alone(
    driver: Driver, job: Callable[..., str], table: str, tmp_path: Path, trace: Trace
) -> None:
    assert driver.job(job()).code == 0
    shutil.rmtree(tmp_path / "docs" / "_e5spark" / "done")
    trace.mark()
    outcome = driver.job(job())
    assert (outcome.code, trace.rows()) == (5, 0)
    assert "no record of a commit" in outcome.document["message"]


def command(arguments: list[str]) -> dict[str, Any]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main(arguments)
    return json.loads(printed.getvalue().splitlines()[-1])
