"""A whole run of the benchmark, as people start it: a process for each contender.

No test here looks at a speed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from e5spark.benchmark import synthetic
from e5spark.benchmark.shapes import SHAPES
from tests.cluster import REPOSITORY

pytestmark = pytest.mark.cluster

# The kinds of contenders: on Spark or not, e5spark or others, with or without a model.
FOUR = ("recipe", "e5spark-torch-fp32", "spark-1x1-torch-fp32", "transport-e5spark")
ROWS = 24
TRANSPORT_ROWS = 120


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("benchmark")


@pytest.fixture(scope="module")
def chart(directory: Path) -> Path:
    return directory / "chart.png"


@pytest.fixture(scope="module")
def outcome(directory: Path, chart: Path) -> "subprocess.CompletedProcess[str]":
    """A whole run as people start it, with a model that is there already."""
    synthetic.checkpoint(SHAPES["tiny"], directory / "models", name="tiny")
    command = [sys.executable, "jobs/benchmark.py", "--shape", "tiny", "--threads", "1"]
    command += ["--rows", str(ROWS), "--transport-rows", str(TRANSPORT_ROWS), "--rounds", "2"]
    command += ["--gemm-seconds", "0.001"]
    command += ["--work", str(directory), "--plot", str(chart)]
    command += ["--json", str(directory / "document.json")]
    for name in FOUR:
        command += ["--only", name]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("SPARK_HOME", None)
    process = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr[-4000:]
    return process


@pytest.fixture(scope="module")
def document(outcome: "subprocess.CompletedProcess[str]", directory: Path) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads((directory / "document.json").read_text())
    return parsed


@pytest.fixture(scope="module")
def by_name(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {summary["name"]: summary for summary in document["contenders"]}


def test_the_file_has_the_document_and_stdout_has_none(
    document: dict[str, Any], outcome: "subprocess.CompletedProcess[str]"
) -> None:
    assert document["status"] == "done"
    assert '"status"' not in outcome.stdout


def test_the_machine_comes_first_and_a_table_before_the_document(
    outcome: "subprocess.CompletedProcess[str]",
) -> None:
    lines = outcome.stdout.splitlines()
    assert "GEMM peaks" in lines[2]
    table = lines[[line.startswith("contender") for line in lines].index(True) :]
    assert [line.split()[0] for line in table[1 : 1 + len(FOUR)]] == list(FOUR)
    sentences = [line for line in lines if line]
    assert sentences[-1].startswith(("Choose ", "Which precision "))


def test_the_document_says_what_was_measured(document: dict[str, Any]) -> None:
    assert document["format"] == 1
    assert document["machine"]["versions"].keys() >= {"e5spark", "torch", "pyspark"}
    assert document["machine"]["cpu"]
    assert all(peak["gflops"]["fp32"] > 0 for peak in document["peaks"])
    assert all(peak["gflops"]["int8"] > 0 for peak in document["peaks"])
    assert document["settings"]["threads"] == 1
    assert document["texts"]["rows"] == ROWS
    assert document["left_out"] == []


def test_every_contender_has_its_figures(by_name: dict[str, dict[str, Any]]) -> None:
    assert list(by_name) == list(FOUR)
    for summary in by_name.values():
        for figure in ("seconds", "texts_per_second"):
            assert 0 < summary[figure]["min"] <= summary[figure]["median"] <= summary[figure]["max"]
        # The kernel counts CPU time in ticks of 10 ms, and a run of these few texts may take none.
        assert 0 <= summary["cpu_seconds"]["min"] <= summary["cpu_seconds"]["max"]
        assert len(summary["worker_pss_mb"]) == len(summary["worker_peak_rss_mb"]) == 1
        assert summary["worker_pss_mb"][0] > 0
    for name in FOUR[:3]:
        assert by_name[name]["first_vector_seconds"]["median"] > 0
        assert 0 < by_name[name]["share_of_peak"]["median"] < 1
        assert by_name[name]["ratio_to_recipe"] > 0


def test_all_contenders_make_the_same_vectors(
    document: dict[str, Any], by_name: dict[str, dict[str, Any]]
) -> None:
    assert document["vectors_compared_with"] == "recipe"
    for name in FOUR[:3]:
        assert by_name[name]["worst_cosine"] > 0.99999
    assert by_name["transport-e5spark"]["worst_cosine"] is None


def test_every_token_goes_through_each_model_and_none_through_the_transport(
    document: dict[str, Any], by_name: dict[str, dict[str, Any]]
) -> None:
    for name in FOUR[:3]:
        assert by_name[name]["computed_tokens"] == document["texts"]["tokens"]
        assert 0 < by_name[name]["padding_efficiency"] <= 1
    transport = by_name["transport-e5spark"]
    assert transport["rows"] == TRANSPORT_ROWS
    assert transport["padding_efficiency"] is None
    assert transport["share_of_peak"] is None


@pytest.mark.usefixtures("outcome")
def test_the_chart_is_a_picture(chart: Path) -> None:
    assert chart.read_bytes().startswith(b"\x89PNG")
