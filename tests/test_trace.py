"""What a run leaves for its report: bounded in size, without credentials, and never fatal."""

import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from e5spark.errors import ConflictError
from e5spark.job import run_page, stored_report
from e5spark.job.config import ReportConfig
from e5spark.job.job_file import load
from e5spark.job.timeline import Timeline
from e5spark.job.trace import Trace
from e5spark.model.registry import Recipe
from e5spark.model.resolve import Plan
from e5spark.model.spec import ModelSpec
from e5spark.tables.ledger import reports
from e5spark.tables.storage.local import LocalStorage
from tests.page_documents import document


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(str(tmp_path), tmp_path)


def amounts(rows: int) -> dict[str, int]:
    return {"rows": rows, "tokens": 10 * rows}


def test_a_hundred_thousand_chunks_take_no_more_room_than_ten() -> None:
    timeline = Timeline()
    for number in range(100_000):
        timeline.add(seconds=2.0, amounts=amounts(3), ended=number + 2.0)
    result = timeline.as_dict()
    assert result is not None
    assert result["chunks"] == 100_000
    assert 60 <= len(result["rows"]) <= 120
    assert sum(result["rows"]) == pytest.approx(300_000, rel=1e-4)
    assert sum(result["tokens"]) == pytest.approx(3_000_000, rel=1e-4)
    assert len(json.dumps(result)) < 5000


def test_rows_are_spread_over_the_time_of_their_chunk() -> None:
    timeline = Timeline()
    timeline.add(seconds=1.0, amounts=amounts(8), ended=1.0)  # 4 bins of a quarter of a second
    timeline.add(seconds=0.5, amounts=amounts(2), ended=1.5)
    result = timeline.as_dict()
    assert result is not None
    assert result["rows"] == [2, 2, 2, 2, 1, 1]
    assert result["last_seconds"] == 0.25
    assert result["chunk_seconds"] == {"lowest": 0.5, "mean": 0.75, "highest": 1.0}


def test_a_run_without_chunks_has_no_speed() -> None:
    assert Timeline().as_dict() is None


def trace(sample: int) -> Trace:
    recipe = Recipe(dim=4, pooling="mean", prompts={}, max_tokens=512)
    plan = Plan(spec=ModelSpec(model="m"), recipe=recipe, weights=None)
    return Trace(ReportConfig(sample=sample), plan)


@pytest.mark.parametrize(
    ("chunks", "sampled"),
    [(1, {1: 1500}), (2, {1: 750, 2: 750}), (1000, {1: 500, 500: 500, 1000: 500})],
)
def test_at_most_three_chunks_are_sampled(chunks: int, sampled: dict[int, int]) -> None:
    collected = trace(1500)
    rows = {number: collected.rows_to_sample(number, chunks) for number in range(1, chunks + 1)}
    assert {number: count for number, count in rows.items() if count} == sampled
    if chunks > 2:  # of the next micro-batch of a stream
        assert collected.rows_to_sample(1, 1) == 0


def test_no_chunk_is_sampled_without_a_sample() -> None:
    assert trace(0).rows_to_sample(1, 1) == 0


def test_the_last_20_documents_are_kept_and_the_last_page(storage: LocalStorage) -> None:
    for epoch in range(1, 31):
        reports.keep(storage, epoch, {"report.json": b"{}", "report.html": b"<html>"})
    assert reports.epochs(storage) == list(range(11, 31))
    pages = [
        epoch
        for epoch in reports.epochs(storage)
        if storage.read(f"_e5spark/reports/{epoch:05d}/report.html")
    ]
    assert pages == [30]
    assert reports.read(storage, 11) == b"{}"
    assert reports.read(storage, 10) is None


def test_settings_are_without_credentials(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text(
        """
        [input]
        path = "s3a://bucket/docs?X-Amz-Signature=PLANTED"
        [input.options]
        "fs.s3a.secret.key" = "PLANTED"
        "api" = "PLANTED"
        "pathGlobFilter" = "*.parquet"
        "mode" = "https://user:PLANTED@host"
        "pin" = "1234"
        "maxFiles" = 12
        [embed]
        text = "body"
        role = "passage"
        [model]
        name = "m"
        [output]
        path = "/out"
        [spark]
        "spark.hadoop.fs.azure.account.key.x" = "PLANTED"
        "spark.sql.shuffle.partitions" = 200
        """
    )
    settings = run_page.settings(load(job))
    assert "PLANTED" not in json.dumps(settings)
    assert "1234" not in json.dumps(settings)
    assert settings["input"]["options.maxFiles"] == "12"
    assert settings["spark"]["spark.sql.shuffle.partitions"] == "200"
    assert settings["input"]["path"] == "s3a://bucket/docs"
    assert "run" not in settings  # all defaults


def test_a_report_that_fails_is_a_warning(
    storage: LocalStorage, caplog: pytest.LogCaptureFixture
) -> None:
    broken: Any = None
    with caplog.at_level(logging.WARNING, "e5spark"):
        path = run_page.write(storage, broken, broken, broken, trace(0), ("", ""))
    assert path == ""
    assert "The rows are committed, but the run has no report" in caplog.text


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"format": "1"}', b"\xff", b"[" * 100_000, b"1", b"null"]
)
def test_a_damaged_report_is_named(content: bytes) -> None:
    with pytest.raises(ConflictError, match=r"The report of run 3 .* is damaged"):
        stored_report.read(content, "the report of run 3 of docs")


def test_a_report_of_a_later_release_is_refused() -> None:
    with pytest.raises(ConflictError, match="has format 2; this e5spark reads formats up to 1"):
        stored_report.read(b'{"format": 2}', "the report of run 3 of docs")


def test_a_report_that_lacks_a_key_or_has_a_wrong_value_is_damaged(tmp_path: Path) -> None:
    for key in document():
        if key in ("format", "started_at"):
            continue
        for value in (None, 3, "x", [], {}):
            changed = {**document(3), key: value}
            with suppress(ConflictError):  # and nothing else
                stored_report.save(changed, tmp_path)
        partial = document(3)
        del partial[key]
        with pytest.raises(ConflictError, match="is damaged"):
            stored_report.save(partial, tmp_path)


def test_a_report_is_written_as_both_files(tmp_path: Path) -> None:
    paths = stored_report.save(document(), tmp_path / "new")
    assert [path.name for path in paths] == ["report.json", "report.html"]
    assert json.loads(paths[0].read_bytes()) == document()
    assert paths[1].read_text("utf-8").startswith("<!DOCTYPE html>")
