"""The report of a run on Spark: written beside its table, brought out by a command, never fatal."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from e5spark import page
from e5spark.cli import main
from tests.page_documents import HOSTILE
from tests.tables import Job

REPORTS = "out/_e5spark/reports"
SECRET = "PLANTED text that nobody may read in a report"


@pytest.fixture
def base(base: Job) -> Job:
    """With a sample for its report."""
    base["report"] = {"sample": 1500}
    return base


def write(tmp_path: Path, **columns: list[Any]) -> None:
    pq.write_table(pa.table(columns), tmp_path / "docs.parquet")


def report(tmp_path: Path, epoch: int = 1) -> dict[str, Any]:
    return json.loads((tmp_path / f"{REPORTS}/{epoch:05d}/report.json").read_bytes())


def test_a_run_leaves_its_report_and_a_command_brings_it_out(
    run_job: Callable[..., Any],
    job_file: Callable[..., str],
    base: Job,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ids = [f"{HOSTILE}{number}" for number in range(30)]
    write(tmp_path, id=ids, body=[f"{SECRET} {n}" for n in range(28)] + [None, " "])
    outcome = run_job(**base)
    assert outcome.code == 0
    first = report(tmp_path)
    assert outcome.document["page"] == str(tmp_path / f"{REPORTS}/00001/report.html")
    assert first["report"] == {
        k: v for k, v in outcome.document.items() if k not in ("status", "page")
    }
    assert sum(first["tokens"]["counts"]) == first["report"]["ok"] == 28
    assert first["speed"]["chunks"] == 1
    assert sum(first["speed"]["tokens"]) == pytest.approx(first["report"]["tokens"], abs=1)
    sample = first["sample"]
    assert (sample["rows"], sample["columns"][0]["vectors"]) == (28, 28)
    assert {id[:80] for id in sample["ids"]} <= {
        id if len(id) < 80 else id[:79] + "…" for id in ids
    }
    assert sample["columns"][0]["cosines"]["pairs"] == 28 * 27 // 2
    html = (tmp_path / f"{REPORTS}/00001/report.html").read_text("utf-8")
    assert html == page.html(first)
    assert "PLANTED" not in html + json.dumps(first)

    again = run_job(**base)  # nothing to do
    assert again.document["embedded"] == 0
    second = report(tmp_path, 2)
    assert (second["speed"], second["tokens"], second["sample"]) == (None, None, None)
    assert [path.name for path in sorted((tmp_path / REPORTS).glob("*/report.html"))] == [
        "report.html"
    ]
    job = job_file(**base)
    capsys.readouterr()
    for options, expected in ([], second), (["--run", "1"], first):
        assert main(["report", job, "--to", str(tmp_path / "to"), *options]) == 0
        assert str(tmp_path / "to" / "report.html") in capsys.readouterr().out
        assert json.loads((tmp_path / "to/report.json").read_bytes()) == expected
        assert (tmp_path / "to/report.html").read_text("utf-8") == page.html(expected)
    assert main(["report", job, "--run", "9"]) == 3
    assert "It has those of the runs 1, 2." in capsys.readouterr().out


def test_a_split_text_in_two_columns_of_bits_is_sampled_window_by_window(
    run_job: Callable[..., Any], base: Job, tmp_path: Path
) -> None:
    long = " ".join(f"word{number}" for number in range(400))
    write(tmp_path, id=[1, 2, 3], body=[long, "short", "other"])
    base["model"] |= {"output_type": "binary", "long_text": "split"}
    assert run_job(**base).code == 0
    sample = report(tmp_path)["sample"]
    windows = [id for id in sample["ids"] if id.startswith("1, window ")]
    assert len(windows) > 2
    column = sample["columns"][0]
    for example in column["examples"]:
        own = sample["ids"][example["row"]].partition(",")[0]
        near = {sample["ids"][one["row"]].partition(",")[0] for one in example["neighbours"]}
        assert own not in near
    base["model"].pop("long_text")
    base["embed"] = {"text": ["title", "body"], "role": "passage"}
    base["output"] = {"path": str(tmp_path / "other")}
    base["report"]["examples"] = "texts"
    write(tmp_path, id=[1, 2, 3, 4], title=["a", "b", "c", None], body=["d", "e", None, "f"])
    assert run_job(**base).code == 0
    document = json.loads((tmp_path / "other/_e5spark/reports/00001/report.json").read_bytes())
    columns = document["sample"]["columns"]
    assert [column["column"] for column in columns] == ["title_embedding", "body_embedding"]
    assert [column["vectors"] for column in columns] == [3, 3]
    shown = dict(zip(document["sample"]["ids"], range(4), strict=True))
    assert columns[0]["texts"] == {
        str(shown[n]): t for n, t in (("1", "a"), ("2", "b"), ("3", "c"))
    }
    assert columns[1]["texts"] == {
        str(shown[n]): t for n, t in (("1", "d"), ("2", "e"), ("4", "f"))
    }


def test_an_id_that_is_a_text_is_never_shown(
    run_job: Callable[..., Any], base: Job, tmp_path: Path
) -> None:
    write(tmp_path, body=[f"{SECRET} {number}" for number in range(5)])
    base["input"]["id"] = "body"
    assert run_job(**base).code == 0
    assert report(tmp_path)["sample"]["ids"] is None
    files = list((tmp_path / REPORTS).rglob("report.*"))
    assert len(files) == 2
    assert not [file for file in files if b"PLANTED" in file.read_bytes()]


def test_a_report_that_fails_never_fails_a_run(
    run_job: Callable[..., Any],
    base: Job,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*arguments: object, **options: object) -> str:
        raise ValueError(SECRET)

    monkeypatch.setattr("e5spark.job.vector_sample.read", broken)
    monkeypatch.setattr("e5spark.page.html", broken)
    write(tmp_path, id=[1, 2], body=["one", "two"])
    with caplog.at_level(logging.WARNING, "e5spark"):
        outcome = run_job(**base)
    assert (outcome.code, outcome.document["ok"]) == (0, 2)
    assert "page" not in outcome.document
    assert "No sample for the report: ValueError." in caplog.text
    assert "The rows are committed, but the run has no report: ValueError" in caplog.text
    assert "PLANTED" not in caplog.text
    assert len(pq.read_table(tmp_path / "out")) == 2
