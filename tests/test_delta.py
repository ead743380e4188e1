"""Delta for real: the jars from Maven Central, read and written, and refused where it exists."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyspark
import pytest

from e5spark.tables import delta_session as delta
from tests.cluster import REPOSITORY, spark_submit
from tests.delta_driver import SMALL_TABLES
from tests.oracle import FP32_TOLERANCE, assert_close, reference
from tests.trace import Trace

TEXTS = ("One text.", "Второй текст.", "Третий текст.")
FIRST_FETCH = 600  # seconds; the jars are in ~/.ivy2 afterwards
PROPERTIES = REPOSITORY / "conf" / "spark-delta.conf"  # for Spark 4.1
IS_4_1 = pyspark.__version__.startswith("4.1.")

# deltalake may abort when its process ends, after its work is done; so it gets a process.
READ = """
import sys, deltalake, pyarrow.parquet
table = deltalake.DeltaTable(sys.argv[1]).to_pyarrow_table()
pyarrow.parquet.write_table(table, sys.argv[2])
"""


@pytest.fixture
def base(tmp_path: Path, model: str) -> dict[str, dict[str, Any]]:
    """A whole job, from Parquet to Delta."""
    pq.write_table(pa.table({"id": range(3), "body": TEXTS}), tmp_path / "docs.parquet")
    return {
        "input": {"path": str(tmp_path / "docs.parquet")},
        "embed": {"text": "body", "role": "passage"},
        "model": {"name": model},
        "output": {"path": str(tmp_path / "delta"), "format": "delta"},
        "spark": {"spark.master": "local[2]", "spark.ui.enabled": "false", **SMALL_TABLES},
    }


@pytest.mark.cluster
@pytest.mark.delta
def test_delta_is_written_read_and_never_overwritten(
    base: dict[str, dict[str, Any]], job_file: Callable[..., str], tmp_path: Path, model: str
) -> None:
    """One test, because each step needs the table of the one before and a JVM of its own."""
    # The command brings the jars itself.
    completed = e5spark_embed(job_file(**base))
    assert completed.returncode == 0, completed.stderr
    check_report(completed.stdout)
    check_vectors(oracle_rows(base["output"]["path"], tmp_path), "", model)

    # spark-submit gets them from conf/spark-delta.conf, except for the build of another Spark.
    base["input"] = {
        "path": base["output"]["path"],
        "format": "delta",
        "columns": ["id", "embedding"],
    }
    base["embed"] |= {"role": "query", "column_prefix": "query_"}
    base["output"]["path"] = str(tmp_path / "second")
    packages = delta.session_settings()["spark.jars.packages"]
    build = [] if IS_4_1 else ["--packages", packages]
    completed = submit("--properties-file", str(PROPERTIES), *build, job_file(**base))
    assert completed.returncode == 0, completed.stderr + completed.stdout
    check_report(completed.stdout)
    rows = oracle_rows(base["output"]["path"], tmp_path)
    check_vectors(rows, "", model)
    check_vectors(rows, "query_", model)

    before = files(tmp_path / "second")
    completed = submit(*delta.submit_flags().split(), job_file(**base))
    assert completed.returncode == 5, completed.stderr + completed.stdout
    assert "second already exists" in json.loads(completed.stdout.splitlines()[-1])["message"]
    assert files(tmp_path / "second") == before


@pytest.mark.parametrize("end", ["input", "output"])
def test_a_session_without_delta_is_refused_with_the_flags_before_any_row_is_embedded(
    base: dict[str, dict[str, Any]], run_job: Callable[..., Any], trace: Trace, end: str
) -> None:
    base["output"].pop("format")
    base[end]["format"] = "delta"
    base.pop("spark")
    outcome = run_job(**base)
    assert outcome.code == 3
    assert outcome.document["error"] == "InputError"
    flags = delta.submit_flags()
    assert f"no Delta. Add to spark-submit: {flags}" in outcome.document["message"]
    assert trace.events("window") == []


@pytest.mark.skipif(
    not IS_4_1, reason=f"conf/spark-delta.conf is for 4.1, not for PySpark {pyspark.__version__}"
)
def test_the_properties_file_is_what_the_code_requires() -> None:
    lines = PROPERTIES.read_text().splitlines()
    settings = dict(line.split() for line in lines if line and not line.startswith("#"))
    assert settings == delta.session_settings()


def files(table: Path) -> dict[Path, int]:
    """When each file was written, without the ledger, where each run leaves its lock."""
    paths = [path for path in table.rglob("*") if "_e5spark" not in path.parts]
    return {path: path.stat().st_mtime_ns for path in paths}


def e5spark_embed(file: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "e5spark", "embed", file]
    # The name that a test session gives its workers' interpreter is not needed here.
    env = {key: value for key, value in os.environ.items() if key != "PYSPARK_PYTHON"}
    return subprocess.run(
        command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=FIRST_FETCH
    )


def submit(*arguments: str) -> subprocess.CompletedProcess[str]:
    *flags, file = arguments
    script = str(REPOSITORY / "jobs" / "embed.py")
    confs = [part for key, value in SMALL_TABLES.items() for part in ("--conf", f"{key}={value}")]
    return spark_submit([*flags, *confs, "--master", "local[2]", script, file], timeout=FIRST_FETCH)


def oracle_rows(path: str, tmp_path: Path) -> list[Mapping[str, Any]]:
    """The table as delta-rs reads it."""
    out = tmp_path / "read.parquet"
    out.unlink(missing_ok=True)
    subprocess.run([sys.executable, "-c", READ, path, str(out)], timeout=60, check=False)
    return sorted(pq.read_table(out).to_pylist(), key=lambda row: row["id"])


def check_report(stdout: str) -> None:
    document = json.loads(stdout.splitlines()[-1])
    counts = {name: document[name] for name in ("status", "rows_in", "rows", "ok")}
    assert counts == {"status": "done", "rows_in": 3, "rows": 3, "ok": 3}


def check_vectors(rows: list[Mapping[str, Any]], prefix: str, model: str) -> None:
    vectors = np.array([row[f"{prefix}embedding"] for row in rows], np.float32)
    prompt = "query: " if prefix else "passage: "
    assert_close(vectors, reference(model, TEXTS, prompt=prompt), FP32_TOLERANCE)
