"""The command line: a JSON document, and for each failure one clear sentence and an exit code."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from e5spark.cli import main
from tests.cluster import REPOSITORY, spark_submit
from tests.oracle import FP32_TOLERANCE, assert_close, reference
from tests.tables import Job
from tests.trace import Trace

TEXTS = ("One text.", "Второй текст.", "Третий текст.")


@pytest.fixture
def base(base: Job, tmp_path: Path) -> Job:
    """Without ids, from tmp_path/docs to tmp_path/out."""
    (tmp_path / "docs").mkdir()
    pq.write_table(pa.table({"id": range(3), "body": TEXTS}), tmp_path / "docs" / "some.parquet")
    return {**base, "input": {"path": str(tmp_path / "docs")}}


# The mistake ({tmp} is the test's directory), the exit code, the error, and its message.
FAILURES = {
    "an unknown key": ("embed.txt=body", 2, "ConfigError", "unknown key 'txt'.* mean 'text'"),
    "an unknown section": ("outptu.path=x", 2, "ConfigError", r"unknown section \[outptu\]"),
    "a value of the wrong type": ("run.partitions=many", 2, "ConfigError", "run.partitions is"),
    "a format that does not exist": (
        "input.format=orc",
        2,
        "ConfigError",
        "must be one of parquet",
    ),
    "a role that does not exist": ("embed.role=document", 2, "OptionError", "Unknown role"),
    "an unknown model": (
        "model.name=intfloat/e5-smal-v2",
        2,
        "ModelError",
        "Unknown model.* mean 'intfloat/e5-small-v2'",
    ),
    "a model that is not here": ("model.name={tmp}/e5", 2, "ModelError", "no model directory"),
    "a device that no worker has": ("model.device=cuda:7", 2, "OptionError", "device is 'cuda:7'"),
    "a Spark setting of the wrong type": (
        "spark.spark.sql.shuffle.partitions=many",
        2,
        "ConfigError",
        r"spark\.sql\.shuffle\.partitions",
    ),
    "a missing column": ("embed.text=bodi", 3, "ColumnError", "no column 'bodi'.* mean 'body'"),
    "a column of numbers": ("embed.text=id", 3, "ColumnError", "'id' is bigint"),
    "a missing role column": ("embed.role_column=kind", 2, "ConfigError", "role_column, and not"),
    "a missing kept column": ('input.columns=["ident"]', 3, "ColumnError", "no column 'ident'"),
    "a path that is not there": ("input.path={tmp}/nowhere", 3, "InputError", "cannot be read"),
    "a path of no file system": ("input.path=nofs://x/y", 3, "InputError", "cannot be read"),
    "a file that is no Parquet": ("input.path={tmp}/job.toml", 3, "InputError", "cannot be read"),
    "a table that is not there": (
        'input.path=""\ninput.table=nowhere',
        3,
        "InputError",
        "input table nowhere cannot be read",
    ),
    "the output in the input": ("output.path={tmp}/docs/out", 3, "InputError", "lies inside"),
    "the output is the input": ("output.path={tmp}/docs", 3, "InputError", "same directory"),
    "the input in the output": ("output.path={tmp}", 3, "InputError", "lies inside"),
    "an output that exists": ("output.path={tmp}/taken", 5, "ConflictError", "already exists"),
    "an output that is a file": ("output.path={tmp}/file", 5, "ConflictError", "already exists"),
    "an output with a bracket": ("output.path={tmp}/o[ut", 2, "ConfigError", r"character '\['"),
    "an output with a star": ("output.path={tmp}/do*s", 2, "ConfigError", r"character '\*'"),
    "an unknown codec": ("output.options.compression=zzz", 2, "ConfigError", "one of zstd, sna"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_job_that_cannot_run_says_why_in_one_sentence_and_touches_nothing(
    run_job: Callable[..., Any],
    base: Job,
    tmp_path: Path,
    trace: Trace,
    caplog: pytest.LogCaptureFixture,
    case: str,
) -> None:
    override, code, kind, sentence = FAILURES[case]
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "part-0.parquet").write_bytes(b"somebody else's")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"somebody else's")
    before = contents(tmp_path)
    outcome = run_job(*override.format(tmp=tmp_path).splitlines(), **base)
    document = outcome.document
    assert outcome.code == document["exit_code"] == code
    assert document["error"] == kind
    assert document["status"] == "failed"
    assert re.search(sentence, document["message"])
    assert document["message"].endswith((".", "?"))
    assert "\n" not in document["message"]
    assert "org.apache" not in document["message"]
    assert len(outcome.stdout.splitlines()) == 1
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [
        document["message"]
    ]
    assert trace.events("window") == []
    after = contents(tmp_path)
    after.pop("job.toml")
    assert after == before


def test_a_damaged_data_page_fails_the_job_as_input(
    run_job: Callable[..., Any], base: Job, tmp_path: Path
) -> None:
    (file,) = (tmp_path / "docs").glob("*.parquet")
    data = bytearray(file.read_bytes())
    data[4:40] = bytes(36)  # right after the magic number; the footer stays whole
    file.write_bytes(data)
    outcome = run_job(**base)
    assert outcome.code == 3
    assert outcome.document["error"] == "InputError"
    assert re.search(
        rf"error while reading file file:/*{file}\. The file is dam", outcome.document["message"]
    )


def test_a_csv_record_that_does_not_parse_fails_the_job_as_input(
    run_job: Callable[..., Any], base: Job, tmp_path: Path
) -> None:
    (tmp_path / "docs.csv").write_text('id,body\n1,one\n2,two,"three"\n')
    base["input"] = {"path": str(tmp_path / "docs.csv"), "format": "csv"}
    outcome = run_job(**base)
    assert outcome.code == 3
    assert outcome.document["error"] == "InputError"
    assert re.search(r"docs\.csv has a malformed record\. Correct it", outcome.document["message"])


def test_overrides_win_over_the_file(
    run_job: Callable[..., Any], base: Job, tmp_path: Path
) -> None:
    base["embed"]["column_prefix"] = "file_"
    outcome = run_job("embed.column_prefix=flag_", f"output.path={tmp_path}/elsewhere", **base)
    assert outcome.code == 0
    (file,) = (tmp_path / "elsewhere").glob("*.parquet")
    assert "flag_status" in pq.read_schema(file).names
    assert not (tmp_path / "out").exists()


def test_the_document_goes_to_a_file_and_stdout_stays_for_people(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "document.json"
    assert main(["init", str(tmp_path / "new"), "--json", str(file)]) == 0
    assert json.loads(file.read_text("utf-8"))["status"] == "done"
    assert '"status"' not in capsys.readouterr().out
    assert main(["init", str(tmp_path / "new"), "--json", str(file)]) == 5
    assert json.loads(file.read_text("utf-8"))["exit_code"] == 5


def test_a_document_that_cannot_be_written_is_an_error_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "nowhere" / "document.json"
    assert main(["init", str(tmp_path / "new"), "--json", str(file)]) == 2
    assert "cannot be written: No such file" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()


def test_wrong_usage_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["embed"])
    assert caught.value.code == 2
    assert "CONFIG" in capsys.readouterr().err.upper()


@pytest.mark.cluster
def test_spark_submit_runs_the_job(
    job_file: Callable[..., str],
    base: Job,
    trace_directory: Path,
    model: str,
) -> None:
    trace = Trace(trace_directory)
    completed = submit(job_file(**base), "--set", "run.partitions=2")
    assert completed.returncode == 0, completed.stderr
    document = json.loads(completed.stdout.splitlines()[-1])
    assert (document["status"], document["rows_in"], document["ok"]) == ("done", 3, 3)
    assert trace.rows() == 3
    rows = sorted(pq.read_table(base["output"]["path"]).to_pylist(), key=lambda row: row["id"])
    vectors = np.array([row["embedding"] for row in rows], np.float32)
    assert_close(vectors, reference(model, TEXTS, prompt="passage: "), FP32_TOLERANCE)


@pytest.mark.cluster
def test_spark_submit_fails_without_a_java_stack_trace(
    job_file: Callable[..., str], base: Job, trace: Trace
) -> None:
    completed = submit(job_file(**base), "--set", "input.path=/nowhere/docs")
    assert completed.returncode == 3
    # spark-submit sends the stderr of a Python driver to stdout.
    *lines, last = completed.stdout.splitlines()
    message = json.loads(last)["message"]
    assert "/nowhere/docs cannot be read as parquet" in message
    assert lines == [f"ERROR e5spark: {message}"]
    for output in (completed.stdout, completed.stderr):
        assert "at org.apache" not in output
        assert "Traceback" not in output
    assert trace.events("window") == []


def submit(*arguments: str) -> Any:
    conf = str(REPOSITORY / "conf" / "spark-local.conf")
    script = str(REPOSITORY / "jobs" / "embed.py")
    return spark_submit(["--properties-file", conf, "--master", "local[2]", script, *arguments])


def contents(directory: Path) -> dict[str, bytes | None]:
    """Every path below, with the bytes of the files."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in directory.rglob("*")
    }
