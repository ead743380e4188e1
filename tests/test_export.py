"""e5spark export: what an index gets of a table, and what it gets when the table has changed."""

import json
import shutil
import uuid
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha1
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from e5spark.cli import main
from e5spark.errors import ConfigError, ConflictError, TransientError
from e5spark.job import job_file as job_files
from e5spark.job.export import ExportOptions, rows, settled
from e5spark.job.export_ids import NAMESPACE
from e5spark.job.history import locked
from e5spark.tables.ledger.lock import acquire
from e5spark.tables.storage.local import LocalStorage
from tests.conftest import Outcome
from tests.golden.write import GOLDEN
from tests.oracle import FP32_TOLERANCE, assert_close, reference
from tests.tables import Job

TEXTS = {1: "one text", 2: "another text", 3: None, 4: "a third text", 5: "a fourth text"}
Export = Callable[..., dict[str, Any]]


@pytest.fixture
def export(
    spark: SparkSession,
    base: Job,
    job_file: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Export:
    """Exports the table of the job to tmp_path/NAME and returns the document."""

    def run(name: str, *arguments: str) -> dict[str, Any]:
        capsys.readouterr()
        code = main(["export", job_file(**base), f"--to={tmp_path / name}", *arguments])
        document = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert code == document.get("exit_code", 0)
        return document

    return run


def write(tmp_path: Path, texts: dict[int, str | None], **more: list[Any]) -> None:
    columns = {"id": list(texts), "body": list(texts.values()), **more}
    pq.write_table(pa.table(columns), tmp_path / "docs.parquet")


def vectors(path: Path) -> list[dict[str, Any]]:
    return sorted(pq.read_table(path / "vectors").to_pylist(), key=lambda row: row["id"])


def deleted(path: Path) -> list[Any]:
    return sorted(pq.read_table(path / "deleted")["id"].to_pylist())


def counts(document: dict[str, Any]) -> tuple[int, ...]:
    names = ("rows", "ok", "new", "changed", "unchanged", "deleted")
    return tuple(document[name] for name in names)


def load(index: dict[Any, Any], path: Path) -> None:
    """What every index does with an export."""
    record = json.loads((path / "export.json").read_text("utf-8"))
    index_has = index.pop("export", None)
    if record["since"] is None:
        index.clear()
    else:
        assert index_has in (record["since"], record["export"])
    for id in deleted(path):
        index.pop(id, None)
    index |= {row.pop("id"): row for row in vectors(path)}
    assert len(index) == record["counts"]["ok"]
    index["export"] = record["export"]


def test_an_index_follows_its_table(
    embed: Callable[..., dict[str, Any]], export: Export, tmp_path: Path, model: str
) -> None:
    write(tmp_path, TEXTS, lang=["en"] * 5)
    assert embed()["code"] == 0
    first = export("first", "--columns=lang")
    assert counts(first) == (5, 4, 4, 0, 0, 0)
    assert first["by_status"]["null_text"] == first["not_ok"] == 1
    exported = vectors(tmp_path / "first")
    assert list(exported[0]) == ["id", "vector", "lang"]
    assert [row["id"] for row in exported] == [1, 2, 4, 5]
    texts = tuple(text for text in TEXTS.values() if text)
    expected = reference(model, texts, prompt="passage: ")
    assert_close(
        np.array([row["vector"] for row in exported], np.float32), expected, FP32_TOLERANCE
    )
    index: dict[Any, Any] = {}
    load(index, tmp_path / "first")

    # Changed text, changed column, lost its text, gone, got a text, new.
    texts_now = {1: "one text, changed", 2: "another text", 3: "now a text", 4: None, 6: "new"}
    write(tmp_path, texts_now, lang=["en", "de", "en", "en", "en"])
    assert embed("run.delete_missing=true")["code"] == 0
    assert main(["compact", str(tmp_path / "job.toml")]) == 0
    since = f"--since={tmp_path / 'first'}"
    second = export("second", since, "--columns=lang")
    assert counts(second) == (5, 4, 2, 2, 0, 2)
    assert [row["id"] for row in vectors(tmp_path / "second")] == [1, 2, 3, 6]
    assert deleted(tmp_path / "second") == [4, 5]
    export("whole", "--columns=lang")
    everything: dict[Any, Any] = {}
    load(everything, tmp_path / "whole")
    for _ in range(2):  # a load that is repeated changes nothing
        load(index, tmp_path / "second")
        assert {**index, "export": None} == {**everything, "export": None}

    # An export that did not end is no base, and the same command makes it again.
    shutil.copytree(tmp_path / "first", tmp_path / "third")
    path = tmp_path / "third" / "export.json"
    record = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**record, "state": "started"}), "utf-8")
    refused = export("other", f"--since={tmp_path / 'third'}", "--columns=lang")
    assert "not a complete export" in refused["message"]
    third = export("third", f"--since={tmp_path / 'second'}", "--columns=lang")
    assert counts(third) == (5, 4, 0, 0, 4, 0)
    load(index, tmp_path / "third")
    assert {**index, "export": None} == {**everything, "export": None}
    keys = pq.read_table(tmp_path / "third" / "keys")
    shutil.rmtree(tmp_path / "third" / "keys")
    (tmp_path / "third" / "keys").mkdir()
    pq.write_table(keys.slice(1), tmp_path / "third" / "keys" / "part.parquet")
    for arguments, word in [
        (["other", f"--since={tmp_path / 'third'}", "--columns=lang"], "has 3 keys of 4"),
        (["first", "--columns=lang"], "not overwritten"),
        (["other", since], "other columns"),
        (["other", since, "--columns=lang", "--uuid"], "other ids"),
        (["other", f"--since={tmp_path / 'nowhere'}"], "not a complete export"),
    ]:
        refused = export(*arguments)
        assert refused["exit_code"] == 5
        assert word in refused["message"]
    for arguments, code in [
        (["other", "--columns=id"], 3),
        (["other", "--columns=absent"], 3),
        (["other", "--vector=absent"], 2),
        (["out/inside"], 2),
    ]:
        assert export(*arguments).get("exit_code", 0) == code


def test_windows_and_uuids_are_unique_and_the_vectors_of_float16_are_floats(
    spark: SparkSession,
    run_job: Callable[..., Outcome],
    base: Job,
    export: Export,
    tmp_path: Path,
) -> None:
    write(tmp_path, {1: "word " * 40, 2: "a short text"})
    base["model"] |= {
        "long_text": "split",
        "max_tokens": 20,
        "overlap": 2,
        "output_type": "float16",
    }
    assert run_job(**base).code == 0
    document = export("plain")
    exported = vectors(tmp_path / "plain")
    assert [row["id"] for row in exported[-2:]] != [1, 2]
    assert {row["id"] for row in exported} == {
        f"{row['source_id']}#{row['window']}" for row in exported
    }
    assert len(exported) > 2
    stored = pq.read_table(tmp_path / "out").to_pylist()
    expected = {
        f"{row['id']}#{row['window']}": np.frombuffer(row["embedding"], "<f2").tolist()
        for row in stored
    }
    assert {row["id"]: row["vector"] for row in exported} == expected
    assert document["vector"]["type"] == "float32"
    assert document["vector"]["dim"] == len(exported[0]["vector"])

    config = job_files.load(tmp_path / "job.toml")
    frame = rows(spark, config, ExportOptions(ids="uuid", columns=("start",)))
    assert frame.columns == ["id", "source_id", "window", "vector", "start"]
    names = [f"{row['source_id']}#{row['window']}" for row in exported]
    namespace = uuid.UUID(NAMESPACE)
    assert {row["id"] for row in frame.select("id").collect()} == {
        str(uuid.uuid5(namespace, name)) for name in names
    }
    numbers = rows(spark, config, ExportOptions(ids="int64")).select("id").collect()
    assert {row["id"] for row in numbers} == {
        int.from_bytes(sha1(namespace.bytes + name.encode()).digest()[:8]) >> 1 for name in names
    }


def test_no_table_is_exported_while_a_run_may_be_writing(tmp_path: Path) -> None:
    files = LocalStorage(str(tmp_path), tmp_path)
    assert settled(files, "table") == 0
    with acquire(files), pytest.raises(TransientError, match="may be changing"):
        settled(files, "table")
    with locked(files, "embed", {}) as (ledger, _):
        epoch = ledger.epoch
    assert settled(files, "table") == epoch


def test_rows_of_a_killed_run_are_finished_before_an_export(tmp_path: Path) -> None:
    interrupted = shutil.copytree(GOLDEN / "0.1.0" / "interrupted", tmp_path / "interrupted")
    (interrupted / "_e5spark" / "lock" / "0000001.released").touch()
    with pytest.raises(ConflictError, match="Start e5spark embed"):
        settled(LocalStorage(str(interrupted), interrupted), "table")


def test_a_namespace_is_a_uuid() -> None:
    assert uuid.UUID(NAMESPACE) == uuid.uuid5(
        uuid.NAMESPACE_URL, "https://github.com/e5spark/e5spark"
    )
    with pytest.raises(ConfigError, match="not a UUID"):
        replace(ExportOptions(), namespace="mine")
