"""Delta tables for real: commits that count once, minimal tables, and other readers of them."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from e5spark.tables.ledger.records import Record
from e5spark.tables.sinks.delta_commit import Commit, append, merge
from e5spark.tables.sinks.delta_table import DeltaTable, delta_name
from tests.cluster import connect_server
from tests.delta_driver import (
    SETTINGS,
    Driver,
    actions,
    delta_rs,
    session,
    start_connect,
)
from tests.frames import to_arrow
from tests.oracle import FP32_TOLERANCE, assert_close, reference
from tests.trace import Trace

pytestmark = pytest.mark.delta

Job = Mapping[str, Mapping[str, Any]]
SCALARS = {"id", "body", "n_tokens", "status", "error", "embedding_fp"}


READERS = {
    "pandas": "pyarrow.Table.from_pandas(table.to_pandas(), preserve_index=False)",
    "duckdb": "duckdb.sql('FROM data').to_arrow_table()",
}
# Their process may abort when it ends, as delta_rs does.
_READ = """
import sys, deltalake, duckdb, pyarrow, pyarrow.parquet
table = deltalake.DeltaTable(sys.argv[1])
data = table.to_pyarrow_dataset()
pyarrow.parquet.write_table({}, sys.argv[2])
"""


def read_by(reader: str, path: Path, scratch: Path) -> pa.Table:
    """The Delta table as others read it, by way of delta-rs."""
    out = scratch / f"{reader}.parquet"
    script = _READ.format(READERS[reader])
    subprocess.run([sys.executable, "-c", script, str(path), str(out)], timeout=60, check=False)
    return pq.read_table(out)


@pytest.fixture
def job(tmp_path: Path, model: str, job_file: Callable[..., str]) -> Callable[..., str]:
    """From changes to a job file: a source of id and body, a Delta table tmp_path/out."""

    def write(**changes: Mapping[str, Any]) -> str:
        sections: dict[str, dict[str, Any]] = {
            "input": {"path": str(tmp_path / "docs.parquet"), "id": "id"},
            "embed": {"text": "body", "role": "passage"},
            "model": {"name": model},
            "output": {"path": str(tmp_path / "out"), "format": "delta"},
            "run": {"chunk_rows": 40, "partitions": 1},
        }
        for name, values in changes.items():
            sections[name] = {**sections.get(name, {}), **values}
        sections = {name: {k: v for k, v in s.items() if v != ""} for name, s in sections.items()}
        return job_file(**sections)

    return write


def write_docs(path: Path, texts: Mapping[int, str]) -> None:
    table = pa.table({"id": list(texts), "body": list(texts.values())})
    pq.write_table(table, path / "docs.parquet")


def check_rows(table: pa.Table, texts: Mapping[int, str], model: str) -> None:
    """The table is exactly these texts, each once, each with its own vector."""
    rows = sorted(table.to_pylist(), key=lambda row: row["id"])
    assert [(row["id"], row["body"]) for row in rows] == sorted(texts.items())
    vectors = np.array([row["embedding"] for row in rows], np.float32)
    bodies = tuple(row["body"] for row in rows)
    assert_close(vectors, reference(model, bodies, prompt="passage: "), FP32_TOLERANCE)


def read(driver: Driver, path: Path) -> pa.Table:
    return driver(spark_rows, delta_name(str(path)))


def spark_rows(name: str) -> pa.Table:
    return to_arrow(session().read.table(name)).sort_by("id")


def test_a_table_is_synced_with_its_source_and_everyone_reads_the_same(
    driver: Driver, job: Callable[..., str], tmp_path: Path, model: str, trace: Trace
) -> None:
    texts = {number: f"Text number {number}." for number in range(100)}
    write_docs(tmp_path, texts)
    outcome = driver.job(job())
    assert (outcome.code, outcome.document["rows"], trace.rows()) == (0, 100, 100)
    check_rows(read(driver, tmp_path / "out"), texts, model)

    trace.mark()
    outcome = driver.job(job())
    assert (outcome.code, outcome.document["embedded"], trace.rows()) == (0, 0, 0)

    texts |= {number: f"Another text {number}." for number in range(20, 57)}
    texts |= {number: f"A new text {number}." for number in range(200, 203)}
    texts = {number: text for number, text in texts.items() if number >= 5}
    write_docs(tmp_path, texts)
    trace.mark()
    outcome = driver.job(job(run={"delete_missing": True}))
    assert (outcome.code, outcome.document["deleted"], trace.rows()) == (0, 5, 40)
    ours = read(driver, tmp_path / "out")
    check_rows(ours, texts, model)
    theirs = delta_rs(tmp_path / "out", tmp_path).sort_by("id")
    assert theirs.select(ours.column_names).to_pylist() == ours.to_pylist()
    for reader in READERS:
        theirs = read_by(reader, tmp_path / "out", tmp_path).sort_by("id")
        assert theirs.select(ours.column_names).to_pylist() == ours.to_pylist(), reader

    status = driver.job(job(), command="status").document
    assert status["rows_by_status"]["embedding"]["ok"] == status["rows"] == len(texts)
    paths = [
        {action["path"] for action in actions(tmp_path / "out", kind)} for kind in ("add", "remove")
    ]
    assert status["files"] == len(paths[0] - paths[1])
    assert status["bytes"] == sum(
        (tmp_path / "out" / path).stat().st_size for path in paths[0] - paths[1]
    )
    assert [run["counts"]["embedded"] for run in status["runs"]] == [100, 0, 40]
    assert (status["problems"], status["lock"]["state"]) == ([], "free")

    # VACUUM removes the files that no version has any more, and nothing that is e5spark's.
    driver(vacuum, str(tmp_path / "out"))
    trace.mark()
    assert driver.job(job(run={"delete_missing": True})).code == 0
    assert trace.rows() == 0
    check_rows(read(driver, tmp_path / "out"), texts, model)


def vacuum(path: str) -> None:
    spark = session()
    spark.conf.set("spark.databricks.delta.retentionDurationCheck.enabled", "false")
    spark.sql(f"VACUUM {delta_name(path)} RETAIN 0 HOURS").collect()


def test_a_new_table_asks_for_little_and_says_where_its_vectors_come_from(
    driver: Driver, job: Callable[..., str], tmp_path: Path
) -> None:
    write_docs(tmp_path, {1: "One text.", 2: "Another."})
    outcome = driver.job(job())
    (protocol,) = actions(tmp_path / "out", "protocol")
    assert protocol == {"minReaderVersion": 1, "minWriterVersion": 2}
    (metadata,) = actions(tmp_path / "out", "metaData")
    properties = metadata["configuration"]
    fingerprint = outcome.document["fingerprint"]
    assert properties["e5spark.fingerprint"] == fingerprint
    assert properties["delta.autoOptimize.optimizeWrite"] == "false"
    assert "delta.enableChangeDataFeed" not in properties
    listed = properties["delta.dataSkippingStatsColumns"].replace("`", "").split(",")
    assert set(listed) == SCALARS
    columns = {field["name"]: field for field in json.loads(metadata["schemaString"])["fields"]}
    assert columns["embedding"]["metadata"]["e5spark.fingerprint"] == fingerprint
    for add in actions(tmp_path / "out", "add"):
        stats = json.loads(add["stats"])
        assert set(stats.get("minValues", {})) <= SCALARS
        assert set(stats.get("nullCount", {})) <= SCALARS
    created, appended = actions(tmp_path / "out", "commitInfo")
    assert "userMetadata" not in created
    assert json.loads(appended["userMetadata"]) == {
        "e5spark.fingerprint": fingerprint,
        "e5spark.epoch": 1,
        "e5spark.chunk": 1,
        "e5spark.kind": "append",
    }


def test_table_properties_and_writer_options_are_set_when_the_table_is_created(
    driver: Driver, job: Callable[..., str], tmp_path: Path
) -> None:
    write_docs(tmp_path, {1: "One text."})
    options = {"delta.enableChangeDataFeed": "true", "compression": "gzip"}
    assert driver.job(job(**{"output.options": options})).code == 0
    (metadata,) = actions(tmp_path / "out", "metaData")
    assert metadata["configuration"]["delta.enableChangeDataFeed"] == "true"
    assert [add["path"] for add in actions(tmp_path / "out", "add")][-1].endswith(".gz.parquet")


def test_an_append_only_table_takes_new_rows_and_refuses_others_before_it_embeds_any(
    driver: Driver, job: Callable[..., str], tmp_path: Path, trace: Trace
) -> None:
    (tmp_path / "out").mkdir()  # an empty directory is free
    settings = {"output.options": {"delta.appendOnly": "true"}}
    write_docs(tmp_path, {1: "One text."})
    assert driver.job(job(**settings)).code == 0
    write_docs(tmp_path, {1: "One text.", 2: "Another."})
    assert driver.job(job(**settings)).document["embedded"] == 1
    write_docs(tmp_path, {1: "One text.", 2: "Changed.", 3: "New."})
    trace.mark()
    outcome = driver.job(job(**settings))
    assert (outcome.code, trace.rows()) == (5, 0)
    assert "is append-only (delta.appendOnly = true)" in outcome.document["message"]

    # It can gain a column; a wider type would rewrite it, and leaves nothing behind.
    for type_, code in ((pa.int32(), 0), (pa.int64(), 5), (pa.int32(), 0)):
        table = pa.table({"id": [1, 2], "body": ["One text.", "Another."]})
        likes = pa.array([1, 2], type_)
        pq.write_table(table.append_column("likes", likes), tmp_path / "docs.parquet")
        outcome = driver.job(job(**settings, run={"refresh_columns": False}))
        assert outcome.code == code, outcome.document


def test_rows_that_ended_in_an_error_are_tried_again_and_appear_once(
    driver: Driver,
    job: Callable[..., str],
    tmp_path: Path,
    poisoned_model: str,
    poison: str,
    trace: Trace,
) -> None:
    write_docs(tmp_path, {1: "One text.", 2: f"A {poison} text.", 3: "Another."})
    settings: dict[str, Any] = {"model": {"name": poisoned_model}, "run": {"max_error_rate": 1.0}}
    assert driver.job(job(**settings)).document["error"] == 1
    outcome = driver.job(job(**settings))
    assert (outcome.document["embedded"], outcome.document["error"]) == (1, 1)
    write_docs(tmp_path, {1: "One text.", 2: "A good text.", 3: "Another."})
    assert driver.job(job(**settings)).document["embedded"] == 1
    assert read(driver, tmp_path / "out")["status"].to_pylist() == ["ok"] * 3


def test_the_windows_of_a_long_text_are_replaced_together(
    driver: Driver, job: Callable[..., str], tmp_path: Path
) -> None:
    settings = {"model": {"long_text": "split", "max_tokens": 16, "overlap": 2}}
    write_docs(tmp_path, {1: "word " * 60, 2: "word " * 30, 3: "word"})
    assert driver.job(job(**settings)).code == 0
    before = windows(driver, tmp_path / "out")
    assert len(before[1]) > len(before[2]) > 1
    write_docs(tmp_path, {1: "Short.", 2: "word " * 60, 3: "word"})
    assert driver.job(job(**settings)).code == 0
    assert windows(driver, tmp_path / "out") == {1: [0], 2: before[1], 3: [0]}
    merges = [
        action
        for action in actions(tmp_path / "out", "commitInfo")
        if action["operation"] == "MERGE"
    ]
    assert len(merges) == 1


def windows(driver: Driver, path: Path) -> dict[int, list[int]]:
    numbers: dict[int, list[int]] = {}
    for row in read(driver, path).to_pylist():
        numbers.setdefault(row["id"], []).append(row["window"])
    return {id: sorted(values) for id, values in numbers.items()}


@pytest.mark.chaos
@pytest.mark.parametrize("at", ["written:2", "recorded:2", "publishing:2"])
def test_a_run_killed_around_an_append_loses_and_doubles_nothing(
    driver: Driver, job: Callable[..., str], tmp_path: Path, model: str, trace: Trace, at: str
) -> None:
    texts = {number: f"Text number {number}." for number in range(120)}
    write_docs(tmp_path, texts)
    file = job(run={"concurrent_chunks": 1})
    driver.killed(file, at=at)
    outcome = driver.job(file)
    assert outcome.code == 0
    # A chunk that was not recorded is embedded again; one that was never is.
    assert trace.rows() == (160 if at == "written:2" else 120)
    assert ("Delta skipped" in outcome.log) == (at == "publishing:2")
    check_rows(read(driver, tmp_path / "out"), texts, model)
    check_rows(delta_rs(tmp_path / "out", tmp_path), texts, model)


@pytest.mark.parametrize(
    "at",
    [
        pytest.param("replacing", marks=pytest.mark.chaos),
        pytest.param("publishing", marks=pytest.mark.chaos_sample),
    ],
)
def test_a_run_killed_around_a_merge_loses_and_doubles_nothing(
    driver: Driver, job: Callable[..., str], tmp_path: Path, model: str, trace: Trace, at: str
) -> None:
    texts = {number: f"Text number {number}." for number in range(60)}
    write_docs(tmp_path, texts)
    assert driver.job(job()).code == 0
    texts = {number: f"Another {number}." if number < 45 else texts[number] for number in range(55)}
    write_docs(tmp_path, texts)
    trace.mark()
    driver.killed(job(run={"delete_missing": True}), at=at)
    outcome = driver.job(job(run={"delete_missing": True}))
    assert (outcome.code, trace.rows()) == (0, 45)
    assert ("Delta skipped" in outcome.log) == (at == "publishing")
    check_rows(read(driver, tmp_path / "out"), texts, model)
    merges = [
        action
        for action in actions(tmp_path / "out", "commitInfo")
        if action["operation"] == "MERGE"
    ]
    assert len(merges) == 1


@pytest.mark.parametrize(
    "at",
    [
        pytest.param("", id="not killed"),
        *(
            pytest.param(at, marks=pytest.mark.chaos)
            for at in ("written", "recorded", "rewritten", "replacing", "publishing")
        ),
    ],
)
def test_changed_titles_are_refreshed_by_one_merge_and_keep_their_vectors(
    driver: Driver, job: Callable[..., str], tmp_path: Path, trace: Trace, at: str
) -> None:
    texts = {number: f"Text number {number}." for number in range(60)}
    titles = {number: f"Title {number}" for number in texts}
    changed = {**titles, **{number: f"Another title {number}" for number in range(10, 47)}}
    write_titles(tmp_path, texts, titles)
    assert driver.job(job()).code == 0
    before = read(driver, tmp_path / "out").to_pylist()
    write_titles(tmp_path, texts, changed)
    trace.mark()
    if at:
        driver.killed(job(), at=at)
    outcome = driver.job(job())
    counts = [outcome.document[name] for name in ("refreshed", "recovered", "embedded")]
    # What was recorded is published, and the same rows are not refreshed again.
    is_recorded = at not in ("", "written")
    assert (outcome.code, counts) == (0, [0, 37, 0] if is_recorded else [37, 0, 0])
    assert trace.rows() == 0
    after = read(driver, tmp_path / "out").to_pylist()
    assert after == [{**row, "title": changed[row["id"]]} for row in before]
    operations = [action["operation"] for action in actions(tmp_path / "out", "commitInfo")]
    assert operations.count("MERGE") == 1


@pytest.mark.parametrize(
    "at", ["", *(pytest.param(at, marks=pytest.mark.chaos) for at in ("replacing", "publishing"))]
)
def test_columns_of_the_input_that_change_are_followed_in_one_commit(
    driver: Driver, job: Callable[..., str], tmp_path: Path, trace: Trace, at: str
) -> None:
    ids = list(range(20))
    columns: dict[str, Any] = {"id": ids, "body": [f"Text number {id}." for id in ids]}
    old = {**columns, "title": [f"Title {id}" for id in ids], "likes": pa.array(ids, pa.int32())}
    pq.write_table(pa.table(old), tmp_path / "docs.parquet")
    assert driver.job(job()).code == 0
    before = read(driver, tmp_path / "out").to_pylist()
    # Added alone, which is written to the log only; then lost and wider, too.
    for type_, factor, heading in ((pa.int32(), 1, "Head"), (pa.int64(), 1 << 40, "Heading")):
        new = {**columns, "likes": pa.array([id * factor for id in ids], type_)}
        new["heading"] = [f"{heading} {id}" for id in ids]
        pq.write_table(pa.table(new), tmp_path / "docs.parquet")
        trace.mark()
        if at:
            driver.killed(job(), at=at)
        outcome = driver.job(job())
        assert (outcome.code, outcome.document["refreshed"], trace.rows()) == (0, 20, 0)
        after = read(driver, tmp_path / "out").to_pylist()
        changed = [{"likes": id * factor, "heading": f"{heading} {id}"} for id in ids]
        assert after == [{**row, **values} for row, values in zip(before, changed, strict=True)]
    log = list(actions(tmp_path / "out", "metaData"))
    assert log[0]["configuration"] == log[-1]["configuration"]
    assert driver.job(job()).document["skipped"] == 20


def write_titles(path: Path, texts: Mapping[int, str], titles: Mapping[int, str]) -> None:
    columns = {"id": list(texts), "body": list(texts.values()), "title": list(titles.values())}
    pq.write_table(pa.table(columns), path / "docs.parquet")


def test_the_same_commit_changes_a_table_once_and_says_so(driver: Driver, tmp_path: Path) -> None:
    assert driver(commit_twice, str(tmp_path / "t")) == [
        (True, 3),
        (False, 3),
        (True, 2),
        (False, 2),
    ]


def commit_twice(path: str) -> list[tuple[bool, int]]:
    spark = session()
    spark.range(0).write.format("delta").save(path)
    table = DeltaTable(spark, delta_name(path))
    outcomes = []
    append_commit = Commit.of(Record(name="00001-00001", kind="append", files=("a",)), path, "fp")
    merge_commit = Commit.of(Record(name="00001-00002", kind="replace", files=("b",)), path, "fp")
    for _ in range(2):
        outcomes.append(
            (append(spark.range(3), table, append_commit, options={}), table.rows().count())
        )
    for _ in range(2):
        clauses = "ON t.id = s.id WHEN MATCHED THEN DELETE"
        outcomes.append(
            (merge(spark.range(1), table, merge_commit, clauses=clauses), table.rows().count())
        )
    # What a MERGE was told through the session's settings is gone with it.
    assert spark.conf.get("spark.databricks.delta.write.txnAppId", None) is None
    return outcomes


def test_a_record_of_a_new_ledger_is_not_taken_for_an_old_one() -> None:
    names = [("work/part-0-aaaa.parquet",), ("work/part-0-bbbb.parquet",)]
    records = [Record(name="00001-00001", kind="append", files=files) for files in names]
    assert len({Commit.of(record, "t", "fp").app for record in records}) == 2


def test_a_table_that_is_not_ours_is_refused_and_left_alone(
    driver: Driver, job: Callable[..., str], tmp_path: Path, trace: Trace
) -> None:
    write_docs(tmp_path, {1: "One text."})
    driver.sql(f"CREATE TABLE {delta_name(str(tmp_path / 'out'))} (id BIGINT) USING delta")
    driver.sql("CREATE TABLE theirs (id BIGINT) USING parquet")
    (tmp_path / "plain").mkdir()
    pq.write_table(pa.table({"id": [1]}), tmp_path / "plain" / "a.parquet")
    before = sorted(tmp_path.rglob("*"))
    for output in (
        {"path": str(tmp_path / "out")},
        {"path": str(tmp_path / "plain")},
        {"path": "", "table": "theirs"},
    ):
        outcome = driver.job(job(output=output))
        assert (outcome.code, trace.rows()) == (5, 0)
        assert "already exists and was not written by e5spark" in outcome.document["message"]
    assert sorted(set(tmp_path.rglob("*")) - {tmp_path / "job.toml"}) == sorted(
        set(before) - {tmp_path / "job.toml"}
    )
    driver.sql("DROP TABLE theirs")


def test_other_vectors_and_a_lost_ledger_are_refused(
    driver: Driver, job: Callable[..., str], tmp_path: Path, trace: Trace
) -> None:
    write_docs(tmp_path, {1: "One text."})
    assert driver.job(job()).code == 0
    trace.mark()
    outcome = driver.job(job(), "model.max_tokens=64")
    assert (outcome.code, trace.rows()) == (5, 0)
    assert "max_tokens is 512, this run's is 64" in outcome.document["message"]
    shutil.rmtree(tmp_path / "out" / "_e5spark")
    outcome = driver.job(job())
    assert (outcome.code, trace.rows()) == (5, 0)
    assert "lost its directory _e5spark" in outcome.document["message"]


def test_a_column_that_delta_cannot_name_is_an_input_error(
    driver: Driver, job: Callable[..., str], tmp_path: Path, trace: Trace
) -> None:
    pq.write_table(pa.table({"id": [1], "a body": ["One text."]}), tmp_path / "docs.parquet")
    outcome = driver.job(job(embed={"text": "a body"}))
    assert (outcome.code, trace.rows()) == (3, 0)
    assert "DELTA_INVALID_CHARACTERS_IN_COLUMN_NAMES" in outcome.document["message"]


def test_a_catalog_table_is_created_and_updated_by_name(
    driver: Driver, job: Callable[..., str], tmp_path: Path, model: str, trace: Trace
) -> None:
    texts = {number: f"Text number {number}." for number in range(10)}
    write_docs(tmp_path, texts)
    driver(import_table, str(tmp_path / "docs.parquet"), "docs")
    driver.sql("CREATE SCHEMA lake")
    file = job(
        input={"path": "", "table": "docs"}, output={"path": "", "table": "lake.docs_embedded"}
    )
    assert driver.job(file).code == 0
    driver.sql("UPDATE docs SET body = 'Another text.' WHERE id = 3")
    trace.mark()
    assert driver.job(file).code == 0
    assert trace.rows() == 1
    check_rows(driver(spark_rows, "lake.docs_embedded"), {**texts, 3: "Another text."}, model)
    status = driver.job(file, command="status").document
    assert (status["output"], status["rows"], status["kind"]) == ("lake.docs_embedded", 10, "delta")


def import_table(path: str, name: str) -> None:
    session().read.parquet(path).write.format("delta").saveAsTable(name)


def test_a_side_table_has_the_id_and_what_was_added(
    driver: Driver, job: Callable[..., str], tmp_path: Path
) -> None:
    write_docs(tmp_path, {1: "One text.", 2: "Another."})
    file = job(input={"columns": ["id"]})
    assert driver.job(file).code == 0
    write_docs(tmp_path, {1: "One text.", 2: "A third."})
    assert driver.job(file).document["embedded"] == 1
    added = ["embedding", "n_tokens", "truncated", "already_prompted", "status", "error"]
    table = read(driver, tmp_path / "out")
    assert table.column_names == ["id", *added, "content_hash", "embedding_fp"]
    assert table["id"].to_pylist() == [1, 2]


def test_files_of_a_delta_table_are_not_compacted_as_plain_files(
    driver: Driver, job: Callable[..., str], tmp_path: Path
) -> None:
    write_docs(tmp_path, {1: "One text."})
    file = job()
    assert driver.job(file).code == 0
    before = sorted((tmp_path / "out").rglob("*"))
    outcome = driver.job(file, command="compact")
    assert (outcome.code, sorted((tmp_path / "out").rglob("*"))) == (5, before)
    assert "OPTIMIZE" in outcome.document["message"]


@pytest.mark.chaos
def test_rows_without_ids_appear_all_at_once(
    driver: Driver, job: Callable[..., str], tmp_path: Path, model: str
) -> None:
    texts = {number: f"Text number {number}." for number in range(60)}
    write_docs(tmp_path, texts)
    file = job(input={"id": ""})
    driver.killed(file, at="publishing")
    assert driver.job(file).code == 0
    check_rows(read(driver, tmp_path / "out"), texts, model)
    writes = [c for c in actions(tmp_path / "out", "commitInfo") if c["operation"] == "WRITE"]
    assert len(writes) == 1


@pytest.mark.cluster
def test_a_table_is_synced_with_its_source_over_connect(
    job: Callable[..., str],
    tmp_path: Path,
    model: str,
    trace: Trace,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    settings = {
        **SETTINGS,
        "spark.log.level": "INFO",  # the line that says where the server listens
        "spark.sql.warehouse.dir": str(tmp_path_factory.mktemp("warehouse")),
    }
    confs = [part for key, value in settings.items() for part in ("--conf", f"{key}={value}")]
    texts = {number: f"Text number {number}." for number in range(50)}
    write_docs(tmp_path, texts)
    with connect_server(tmp_path_factory.mktemp("connect"), *confs) as url:
        driver = Driver(start_connect, url)
        assert driver.job(job()).code == 0
        texts |= {7: "Another text.", 50: "A new text."}
        texts.pop(3)
        write_docs(tmp_path, texts)
        trace.mark()
        assert driver.job(job(run={"delete_missing": True})).code == 0
        assert trace.rows() == 2
        check_rows(read(driver, tmp_path / "out"), texts, model)
        driver.close()
    (metadata,) = actions(tmp_path / "out", "metaData")
    columns = {field["name"]: field for field in json.loads(metadata["schemaString"])["fields"]}
    assert "e5spark.fingerprint" in columns["embedding"]["metadata"]


def test_rows_of_an_unknown_commit_are_neither_doubled_nor_changed(
    driver: Driver, job: Callable[..., str], tmp_path: Path, trace: Trace
) -> None:
    write_docs(tmp_path, {1: "One text."})
    assert driver.job(job()).code == 0
    shutil.rmtree(tmp_path / "out" / "_e5spark" / "done")
    trace.mark()
    outcome = driver.job(job())
    assert (outcome.code, trace.rows()) == (5, 0)
    assert "no record of a commit" in outcome.document["message"]
    assert read(driver, tmp_path / "out").num_rows == 1


def test_a_table_that_was_made_for_other_vectors_is_refused_before_its_first_rows_too(
    driver: Driver, job: Callable[..., str], tmp_path: Path, trace: Trace
) -> None:
    pq.write_table(pa.table({"id": [1, 1], "body": ["One.", "Two."]}), tmp_path / "docs.parquet")
    assert driver.job(job()).code == 3
    write_docs(tmp_path, {1: "One text."})
    outcome = driver.job(job(), "model.max_tokens=64")
    assert (outcome.code, trace.rows()) == (5, 0)
    assert "if it has no rows, remove it" in outcome.document["message"]
    assert driver.job(job()).code == 0
