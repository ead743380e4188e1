"""How recorded rows become visible in a Parquet table, and what that costs."""

from pathlib import Path
from shutil import copy
from typing import Any

import pytest
from pyspark.sql import SparkSession
from pyspark.sql.types import StructType

from e5spark.errors import ConflictError, OptionError, TransientError
from e5spark.tables.ledger.ledger import Ledger
from e5spark.tables.ledger.records import Record
from e5spark.tables.sinks.commit import Commits
from e5spark.tables.sinks.files import write_path
from e5spark.tables.sinks.parquet import ParquetSink
from e5spark.tables.sinks.staging import stage
from e5spark.tables.storage.local import LocalStorage
from tests.test_commit import FakeLock, FakeTarget

RECORDS, FILES = 3, 20
SCHEMA = StructType().add("id", "long")


class Noting(LocalStorage):
    """What was moved and deleted, in order; one move fails."""

    def __init__(self, directory: Path, *, fails: str = "") -> None:
        super().__init__(str(directory), directory)
        self.done: list[tuple[str, str]] = []
        self._fails = fails

    def rename(self, source: str, target: str) -> None:
        if source == self._fails:
            raise TransientError("The store does not answer.")
        super().rename(source, target)
        self.done.append(("rename", target))

    def delete(self, name: str) -> None:
        super().delete(name)
        self.done.append(("delete", name))


@pytest.fixture
def records() -> list[Record]:
    """Deferred records, and the record that replaces some files by theirs."""
    deferred = [
        Record(
            name=f"00001-{number:05d}",
            kind="deferred",
            files=tuple(f"_e5spark/staging/{number}/{file}.parquet" for file in range(FILES)),
        )
        for number in range(RECORDS)
    ]
    removes = tuple(f"part-old-{number}.parquet" for number in range(FILES))
    return [*deferred, Record(name="00001-00009", kind="replace", removes=removes)]


def publish(spark: SparkSession, files: Noting, records: list[Record]) -> None:
    *deferred, record = records
    for name in (*(file for earlier in deferred for file in earlier.files), *record.removes):
        files.put(name, name.encode())
    target = ParquetSink(spark, path=files.root, options={})
    target.publish(Ledger(files, FakeLock(1)), record, deferred)


def test_all_files_are_renamed_by_record_and_number_before_one_is_deleted(
    spark: SparkSession, tmp_path: Path, records: list[Record]
) -> None:
    files = Noting(tmp_path)
    publish(spark, files, records)
    kinds = [kind for kind, _ in files.done]
    assert kinds == ["rename"] * RECORDS * FILES + ["delete"] * FILES
    for number, record in enumerate(records[:-1]):
        for file in range(FILES):
            content = files.read(f"part-{record.name}-{file:05d}.parquet")
            assert content == f"_e5spark/staging/{number}/{file}.parquet".encode()


def test_no_file_is_deleted_if_a_rename_fails(
    spark: SparkSession, tmp_path: Path, records: list[Record]
) -> None:
    files = Noting(tmp_path, fails=records[1].files[7])
    with pytest.raises(TransientError):
        publish(spark, files, records)
    assert "delete" not in dict(files.done)


def test_the_ids_of_many_deferred_records_are_read_as_one_table(
    spark: SparkSession, tmp_path: Path
) -> None:
    class Sink(FakeTarget):
        location = str(tmp_path)

        def stage_replacement(self, ledger: Ledger, record: Record, **arguments: Any) -> Record:
            stale = arguments["stale"]()
            assert sorted(row["id"] for row in stale.collect()) == list(range(6))
            plan = stale._jdf.queryExecution().analyzed().toString()
            assert (plan.count("Relation"), plan.count("Union")) == (1, 0)
            return record

    files = LocalStorage(str(tmp_path), tmp_path)
    ledger, target = Ledger(files, FakeLock(1)), Sink()
    df = spark.range(6)
    commits = Commits(ledger, target, schema=df.schema, id="id")
    deferred = tuple(ledger.name(number) for number in range(3))
    for number, name in enumerate(deferred):
        df.filter(df["id"] % 3 == number).write.parquet(ledger.staging_path(name))
        commits.commit(Record(name=name, kind="deferred", files=ledger.staged_files(name)))
    replacement = commits.replace(
        spark, Record(name="00001-00009", kind="replace", includes=deferred)
    )
    assert target.published == [replacement.name]


@pytest.fixture
def sink(spark: SparkSession, tmp_path: Path) -> ParquetSink:
    """A table of three small files, each with ten rows and a record."""
    files = LocalStorage(str(tmp_path), tmp_path)
    ledger = Ledger(files, FakeLock(1))
    target = ParquetSink(spark, path=str(tmp_path), options={})
    commits = Commits(ledger, target, schema=SCHEMA, id="id")
    for number in range(3):
        name = ledger.name(number)
        rows = spark.range(10 * number, 10 * number + 10).coalesce(1)
        staged, _ = stage(rows, target, ledger, name)
        commits.commit(Record(name=name, kind="append", files=staged, rows=10))
    return target


def test_a_file_that_no_commit_has_put_there_is_refused(sink: ParquetSink, tmp_path: Path) -> None:
    ledger = Ledger(LocalStorage(str(tmp_path), tmp_path), FakeLock(2))
    sink.check_files(ledger)
    (tmp_path / "_notes").touch()
    sink.check_files(ledger)
    for name in ("part-00001-00001-00000 (copy).parquet", "part-00007-00001-00000.parquet", "sub"):
        copy(tmp_path / "part-00001-00001-00000.parquet", tmp_path / name)
        with pytest.raises(ConflictError) as caught:
            sink.check_files(ledger)
        assert f"has files that no commit has put there: {name}." in str(caught.value)
        (tmp_path / name).unlink()


def test_compaction_counts_all_files_and_leaves_few_small_ones(
    sink: ParquetSink, tmp_path: Path
) -> None:
    ledger = Ledger(LocalStorage(str(tmp_path), tmp_path), FakeLock(2))
    record = Record(name=ledger.name(1), kind="replace")
    assert sink.count_files() == 3
    unchanged = sink.stage_compaction(ledger, record, schema=SCHEMA, target_bytes=1)
    assert unchanged == record
    with pytest.raises(OptionError, match="0 bytes; it must be at least 1"):
        sink.stage_compaction(ledger, record, schema=SCHEMA, target_bytes=0)
    merged = sink.stage_compaction(ledger, record, schema=SCHEMA, target_bytes=1 << 20)
    Commits(ledger, sink, schema=SCHEMA, id="id").commit(merged)
    assert (merged.rows, sink.count_files()) == (30, 1)
    sink.check_files(ledger)


def test_a_damaged_file_of_the_output_is_not_called_the_input(
    sink: ParquetSink, tmp_path: Path
) -> None:
    file = tmp_path / "part-00001-00001-00000.parquet"
    file.write_bytes(file.read_bytes()[:40])
    (tmp_path / f".{file.name}.crc").unlink(missing_ok=True)
    ledger = Ledger(LocalStorage(str(tmp_path), tmp_path), FakeLock(2))
    record = Record(name=ledger.name(1), kind="replace")
    with pytest.raises(
        ConflictError, match=rf"^The output cannot be read: its file \S*{file.name}"
    ):
        sink.stage_compaction(ledger, record, schema=SCHEMA, target_bytes=1 << 20)
    path = ledger.work_path("changes")
    with pytest.raises(
        ConflictError, match=rf"^The output cannot be read: its file \S*{file.name}"
    ):
        write_path(sink.rows(SCHEMA), path, format="parquet", options={})


def test_a_table_without_files_needs_no_job_to_be_empty(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = StructType().add("id", "string")
    target = ParquetSink(spark, path=str(tmp_path / "out"), options={})
    with monkeypatch.context() as patch:
        patch.setattr(ParquetSink, "rows", None)
        assert target.is_empty(schema)
    spark.createDataFrame([], schema).write.parquet(str(tmp_path / "out"))
    assert target.is_empty(schema)
    spark.createDataFrame([("a",)], schema).write.mode("append").parquet(str(tmp_path / "out"))
    assert not target.is_empty(schema)
