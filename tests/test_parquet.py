"""How recorded rows become visible in a Parquet table, and what that costs."""

from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from e5spark.errors import TransientError
from e5spark.tables.ledger.ledger import Ledger, Record
from e5spark.tables.sinks.commit import Commits
from e5spark.tables.sinks.parquet import ParquetSink
from e5spark.tables.storage.local import LocalStorage
from tests.test_commit import FakeLock, FakeTarget

RECORDS, FILES = 3, 20


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
    """Some that wait, and the one that replaces some files by theirs."""
    held = [
        Record(
            name=f"00001-{number:05d}",
            kind="deferred",
            files=tuple(f"_e5spark/staging/{number}/{file}.parquet" for file in range(FILES)),
        )
        for number in range(RECORDS)
    ]
    removes = tuple(f"part-old-{number}.parquet" for number in range(FILES))
    return [*held, Record(name="00001-00009", kind="replace", removes=removes)]


def publish(spark: SparkSession, files: Noting, records: list[Record]) -> None:
    *held, record = records
    for name in (*(file for each in held for file in each.files), *record.removes):
        files.put(name, name.encode())
    target = ParquetSink(spark, path=files.root, options={})
    target.publish(Ledger(files, FakeLock(1)), record, held)


def test_all_files_come_before_one_goes_and_each_has_the_name_of_its_place(
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


def test_no_file_goes_if_one_could_not_come(
    spark: SparkSession, tmp_path: Path, records: list[Record]
) -> None:
    files = Noting(tmp_path, fails=records[1].files[7])
    with pytest.raises(TransientError):
        publish(spark, files, records)
    assert "delete" not in dict(files.done)


def test_the_ids_of_many_held_records_are_read_as_one_table(
    spark: SparkSession, tmp_path: Path
) -> None:
    class Sink(FakeTarget):
        location = str(tmp_path)

        def stage_replacement(self, ledger: Ledger, record: Record, **given: Any) -> Record:
            stale = given["stale"]()
            assert sorted(row["id"] for row in stale.collect()) == list(range(6))
            plan = stale._jdf.queryExecution().analyzed().toString()
            assert (plan.count("Relation"), plan.count("Union")) == (1, 0)
            return record

    files = LocalStorage(str(tmp_path), tmp_path)
    ledger, target = Ledger(files, FakeLock(1)), Sink()
    df = spark.range(6)
    commits = Commits(ledger, target, schema=df.schema, id="id")
    held = tuple(ledger.name(number) for number in range(3))
    for number, name in enumerate(held):
        df.filter(df["id"] % 3 == number).write.parquet(f"{tmp_path}/{ledger.staging(name)}")
        commits.record(Record(name=name, kind="deferred", files=ledger.staged(name)))
    replacement = commits.replace(spark, Record(name="00001-00009", kind="replace", includes=held))
    assert target.published == [replacement.name]
