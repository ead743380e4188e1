"""No text, no id that is a text and no credential leaves a run but in the rows of its output."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cluster import REPOSITORY
from tests.tables import Job

SECRET = "PLANTED"
LONG = f"{SECRET} text of more than forty characters, which nobody may read in a log"
DRIVER = """
import json, sys
from pyspark.sql import SparkSession
from e5spark.cli import main

spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
for command in json.load(open(sys.argv[1])):
    print("CODE", main(command))
"""


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """What a job reads, with a secret in it, and the exit code."""
    files = {
        "headerless.csv": f"1,{LONG}\n2,{SECRET}\n",
        "malformed.csv": f'id,body\n1,one\n2,two,"{LONG}"\n',
        "malformed.jsonl": f'{{"id": 1, "body": "one"}}\n{{"id": 2, "body": "{LONG}" oops\n',
        "no.jsonl": f"{LONG}\n",
        "lines.txt": f"{LONG}\n{LONG}\n",
        "short.txt": f"{SECRET}\n{SECRET}\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    docs = pa.table({"id": [1, 2], "body": [LONG, SECRET], "key": [LONG, LONG]})
    pq.write_table(docs, tmp_path / "docs.parquet")
    at = str(tmp_path)
    credentials = f"s3a://KEY:{SECRET}/x+y@bucket"
    return {
        "a table": {"path": f"{at}/docs.parquet", "code": 0},
        "a table with options": {
            "path": f"{at}/docs.parquet",
            "options": {"fs.s3a.secret.key": SECRET},
            "code": 0,
        },
        "duplicates": {"path": f"{at}/docs.parquet", "id": "key", "text": "key", "code": 3},
        "a column that is missing": {"path": f"{at}/docs.parquet", "text": "no", "code": 3},
        "CSV without a header": {"path": f"{at}/headerless.csv", "format": "csv", "code": 3},
        "CSV over Parquet": {"path": f"{at}/docs.parquet", "format": "csv", "code": 3},
        "JSON over Parquet": {"path": f"{at}/docs.parquet", "format": "jsonl", "code": 3},
        "JSON over text": {"path": f"{at}/no.jsonl", "format": "jsonl", "code": 3},
        "Parquet over text": {"path": f"{at}/lines.txt", "code": 3},
        "a malformed record of CSV": {"path": f"{at}/malformed.csv", "format": "csv", "code": 3},
        "a malformed record of JSON": {
            "path": f"{at}/malformed.jsonl",
            "format": "jsonl",
            "code": 3,
        },
        "texts as ids": {
            "path": f"{at}/lines.txt",
            "format": "text",
            "id": "value",
            "text": "value",
            "code": 3,
        },
        "short texts as ids": {
            "path": f"{at}/short.txt",
            "format": "text",
            "id": "value",
            "text": "value",
            "code": 3,
        },
        "a path with credentials": {"path": f"{credentials}/docs", "code": 2},
        "an output with credentials": {
            "path": f"{at}/docs.parquet",
            "output": f"{credentials}/out",
            "code": 2,
        },
    }


@pytest.mark.usefixtures("jvm")
def test_no_secret_is_printed_logged_or_stored_except_in_rows(
    inputs: dict[str, dict[str, Any]],
    job_file: Callable[..., str],
    base: Job,
    tmp_path: Path,
) -> None:
    commands, outputs = [], []
    for number, case in enumerate(inputs.values()):
        job = {**base, "input": {"path": case["path"]}, "embed": {**base["embed"]}}
        job["input"] |= {key: case[key] for key in ("format", "id") if key in case}
        job["embed"]["text"] = case.get("text", "body")
        job["input.options"] = case.get("options", {})
        job["report"] = {"sample": 100}
        job["output"] = {"path": case.get("output", str(tmp_path / f"out-{number}"))}
        path = tmp_path / f"job-{number}.toml"
        Path(job_file(**job)).rename(path)
        commands.append(["embed", str(path)])
        outputs.append(tmp_path / f"out-{number}")
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    completed = subprocess.run(
        [sys.executable, "-c", DRIVER, str(tmp_path / "commands.json")],
        cwd=REPOSITORY,
        env={**os.environ, "PYSPARK_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=True,
    )
    # Neither e5spark nor Spark, which logs warnings here, says one.
    lines = (completed.stdout + completed.stderr).splitlines()
    assert [line for line in lines if SECRET in line] == []
    documents = [json.loads(line) for line in completed.stdout.splitlines() if line.startswith("{")]
    codes = {
        name: document.get("exit_code", 0) for name, document in zip(inputs, documents, strict=True)
    }
    assert codes == {name: case["code"] for name, case in inputs.items()}, documents
    state = [
        file
        for out in outputs
        for file in out.rglob("*")
        if file.is_file() and ".parquet" not in file.name
    ]
    assert len(state) > 3
    assert [file for file in state if SECRET.encode() in file.read_bytes()] == []
