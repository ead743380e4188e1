"""e5spark prepare: a checkpoint prepared once, in fp32 or in int8, and the runs that use it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame

from e5spark.cli import main
from e5spark.encoder import Encoder
from e5spark.encoder import int8 as quantized
from e5spark.model import prepared
from e5spark.model.resolve import make_plan
from e5spark.model.spec import model_spec
from tests.oracle import FP32_TOLERANCE, assert_close
from tests.trace import Trace

Prepare = Callable[..., tuple[int, dict[str, Any]]]
Sections = dict[str, dict[str, object]]


@pytest.fixture(scope="module")
def corpus(
    make_table: Callable[..., DataFrame],
    texts: tuple[str, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    path = str(tmp_path_factory.mktemp("corpus") / "in")
    make_table([*texts[:120], None, " "], partitions=3).write.parquet(path)
    return path


@pytest.fixture
def sections(corpus: str, model: str, tmp_path: Path) -> Sections:
    return {
        "input": {"path": corpus, "id": "id"},
        "embed": {"text": "text", "role": "passage"},
        "model": {"name": model},
        "output": {"path": str(tmp_path / "out")},
    }


@pytest.fixture
def prepare(capsys: pytest.CaptureFixture[str]) -> Prepare:
    """Runs `e5spark prepare`, and returns its exit code and its document."""

    def run(*arguments: object) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        code = main(["prepare", *map(str, arguments)])
        return code, json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


@pytest.fixture
def fast_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes int8 for faster than fp32, because tests must not depend on the machine's speed."""
    monkeypatch.setattr(quantized, "_speedup", lambda before, after: 2.0)


def vectors(path: Path, column: str = "embedding") -> np.ndarray:
    rows = pq.read_table(path).sort_by("id").to_pylist()
    return np.array([row[column] for row in rows if row["status"] == "ok"], np.float32)


def test_a_prepared_model_makes_the_rows_of_its_checkpoint(
    prepare: Prepare,
    run_job: Callable[..., Any],
    sections: Sections,
    model: str,
    tmp_path: Path,
    trace: Trace,
) -> None:
    code, document = prepare(model, "--to", tmp_path / "ready")
    assert (code, document["kind"], document["needs_vnni"]) == (0, "float", False)
    assert document["bytes"] > 0
    assert run_job(**sections).code == 0
    # Either of them can sync the table: their vectors are the same.
    sections["model"] = {"name": str(tmp_path / "ready")}
    again = run_job(**sections).document
    assert (again["rows_in"], again["embedded"]) == (122, 0)
    sections["output"] = {"path": str(tmp_path / "other")}
    assert run_job(**sections).code == 0
    assert {event["engine"] for event in trace.events("load")} <= {"openvino"}
    assert_close(vectors(tmp_path / "other"), vectors(tmp_path / "out"), FP32_TOLERANCE)


def test_int8_is_made_of_a_sample_of_the_corpus_and_runs_as_a_model(
    prepare: Prepare,
    run_job: Callable[..., Any],
    sections: Sections,
    job_file: Callable[..., str],
    model: str,
    tmp_path: Path,
    fast_enough: None,
) -> None:
    job = job_file(**sections)
    to = tmp_path / "int8"
    options = ["--precision", "int8", "--calibrate", job, "--sample", 60]
    code, document = prepare(model, "--to", to, *options)
    assert (code, document["kind"]) == (0, "int8")
    quality = document["quality"]
    assert quality["mean_cosine"] >= quantized.MEAN_COSINE
    assert quality["texts"] == 30
    assert prepared.read(to).quality == quality
    assert run_job(**sections).code == 0
    sections["model"] = {"name": str(to)}
    mixed = run_job(**sections)
    assert mixed.code == 5
    assert 'precision is "fp32", this run\'s is "int8"' in mixed.document["message"]
    sections["output"] = {"path": str(tmp_path / "fast")}
    fast = run_job(**sections)
    assert fast.code == 0
    assert fast.document["fingerprint_parts"]["precision"] == "int8"
    cosines = (vectors(tmp_path / "fast") * vectors(tmp_path / "out")).sum(axis=1)
    print(f"int8: mean cosine {cosines.mean():.6f}, worst {cosines.min():.6f}")
    assert cosines.mean() >= quantized.MEAN_COSINE - 0.005  # other texts than it was judged by


def test_int8_below_its_quality_gate_is_not_written(
    prepare: Prepare,
    spark: object,
    sections: Sections,
    job_file: Callable[..., str],
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quantized, "MEAN_COSINE", 1.01)
    job = job_file(**sections)
    to = tmp_path / "int8"
    options = ["--precision", "int8", "--calibrate", job, "--sample", 60]
    code, document = prepare(model, "--to", to, *options)
    assert (code, document["error"]) == (4, "GateError")
    for scheme in quantized.SCHEMES:
        assert f"{scheme.name}: mean cosine" in document["message"]
    assert [path for path in tmp_path.iterdir() if path.name != "job.toml"] == []


@pytest.mark.parametrize("overflow_safe", [True, False])
def test_int8_knows_whether_it_needs_vnni(
    prepare: Prepare,
    spark: object,
    sections: Sections,
    job_file: Callable[..., str],
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fast_enough: None,
    overflow_safe: bool,
) -> None:
    monkeypatch.setattr(quantized, "SCHEMES", quantized.SCHEMES[:1])
    # On a CPU without VNNI the sums of one scheme do overflow, which this test does not check.
    monkeypatch.setattr(quantized, "MEAN_COSINE", -1.0)
    monkeypatch.setattr("e5spark.encoder.engines.openvino.has_vnni", lambda: True)
    job = job_file(**sections)
    flag = "--overflow-safe" if overflow_safe else "--no-overflow-safe"
    to = tmp_path / "int8"
    options = ["--precision", "int8", "--calibrate", job, "--sample", 60, flag]
    code, document = prepare(model, "--to", to, *options)
    assert (code, document.get("needs_vnni")) == (0, not overflow_safe), document
    monkeypatch.setattr("e5spark.encoder.engines.openvino.has_vnni", lambda: False)
    if overflow_safe:
        assert Encoder.load(str(to)).encode(["a text"], role="query").shape == (1, 32)
    else:
        with pytest.raises(Exception, match="was quantised for CPUs with VNNI"):
            Encoder.load(str(to))


def test_what_cannot_be_prepared_is_refused(prepare: Prepare, model: str, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    assert prepare(model, "--to", ready)[0] == 0
    code, document = prepare(model, "--to", ready)
    assert (code, document["message"]) == (5, f"{ready} already exists; name a new directory.")
    code, document = prepare(ready, "--to", tmp_path / "twice")
    assert (code, f"{ready} is a prepared model already" in document["message"]) == (2, True)
    code, document = prepare(model, "--to", tmp_path / "x", "--precision", "int8")
    assert (code, "--calibrate JOB.toml belong together" in document["message"]) == (2, True)
    code, document = prepare("./nowhere", "--to", tmp_path / "x")
    assert (code, "There is no model directory" in document["message"]) == (2, True)


def test_a_prepared_model_knows_which_published_checkpoint_it_is(
    prepare: Prepare, minilm: str, tmp_path: Path
) -> None:
    name = "sentence-transformers/all-MiniLM-L6-v2"
    code, _ = prepare(minilm, "--to", tmp_path / "ready", f"--set=model.checkpoint={name}")
    assert (code, prepared.read(tmp_path / "ready").checkpoint) == (0, name)
    spec = model_spec(str(tmp_path / "ready"), {})
    published = model_spec(minilm, {"checkpoint": name})
    assert make_plan(spec, spec).fingerprint == make_plan(published, published).fingerprint


@pytest.mark.cluster
def test_executors_run_a_prepared_model_in_an_environment_without_torch(
    prepare: Prepare, sections: Sections, job_file: Callable[..., str], model: str, tmp_path: Path
) -> None:
    """Workers whose interpreter sees the packages of ``e5spark[openvino]`` and none besides."""
    assert prepare(model, "--to", tmp_path / "ready")[0] == 0
    sections["model"] = {"name": str(tmp_path / "ready")}
    sections["spark"] = {"spark.master": "local[1]", "spark.ui.enabled": False}
    environment = {
        **os.environ,
        "PYSPARK_PYTHON": str(bare_environment(tmp_path / "bare")),
        "PYSPARK_DRIVER_PYTHON": sys.executable,
    }
    command = [sys.executable, "-m", "e5spark", "embed", job_file(**sections)]
    completed = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    assert json.loads(completed.stdout.splitlines()[-1])["ok"] == 120
    expected = Encoder.load(model, engine="torch").encode(
        [row["text"] for row in pq.read_table(tmp_path / "out").sort_by("id").to_pylist()[:50]],
        role="passage",
    )
    assert_close(vectors(tmp_path / "out")[:50], expected, FP32_TOLERANCE)


# What pip install 'e5spark[openvino]' brings, and the Spark that a cluster brings.
PACKAGES = (
    *("numpy", "numpy.libs", "pandas", "pyarrow", "pyarrow.libs", "tokenizers", "openvino"),
    *("pyspark", "py4j", "dateutil", "six.py", "pytz", "packaging", "safetensors"),
)


def bare_environment(directory: Path) -> Path:
    """A virtual environment that has links to a few packages of this one; returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
    (site,) = directory.glob("lib/python*/site-packages")
    own = Path(np.__file__).parent.parent
    for name in PACKAGES:
        if (own / name).exists():
            (site / name).symlink_to(own / name)
    package = Path(prepared.__file__).parents[1]
    (site / "e5spark").symlink_to(package)
    python = directory / "bin" / "python"
    for name in ("torch", "transformers"):
        actual = subprocess.run([python, "-c", f"import {name}"], capture_output=True, text=True)
        assert "ModuleNotFoundError" in actual.stderr, actual.stderr
    return python
