"""make quality says why it skips, and fails where a figure is off."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from e5spark.evaluate import evaluation_file
from tests.cluster import REPOSITORY

SCRIPT = REPOSITORY / "jobs" / "quality.py"


@pytest.fixture(scope="module")
def quality() -> ModuleType:
    spec = importlib.util.spec_from_file_location("quality", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def variant(quality: ModuleType, precision: str, **changes: float) -> dict[str, object]:
    figures = {key: value for key, (value, _) in quality.FIGURES.items()}
    tasks = [
        {"task": task, "scores": {metric: {"value": value + changes.get(metric.split("@")[0], 0)}}}
        for (task, metric), value in figures.items()
    ]
    # one entry for each metric: the script merges them by task and metric
    return {"precision": precision, "output_type": "float32", "tasks": tasks}


def test_figures_within_their_tolerances_pass(quality: ModuleType, capsys) -> None:
    variants = [variant(quality, "fp32"), variant(quality, "int8", ndcg=-0.004)]
    assert quality.check(variants) == 0
    assert "All figures are as published." in capsys.readouterr().out


def test_figure_that_is_off_is_named(quality: ModuleType, capsys) -> None:
    assert quality.check([variant(quality, "fp32", ndcg=0.001)]) == 4
    assert "SciFact ndcg@10 is 0.688500; 0.6875 was expected" in capsys.readouterr().out


def test_precision_that_loses_too_much_is_named(quality: ModuleType, capsys) -> None:
    variants = [variant(quality, "fp32"), variant(quality, "int8", spearman=-0.006)]
    assert quality.check(variants) == 4
    assert "STSBenchmark spearman is 0.843160 in int8" in capsys.readouterr().out


def test_absent_data_is_a_printed_reason_and_no_failure(tmp_path: Path) -> None:
    environment = {**os.environ, "E5SPARK_TEST_DATA": str(tmp_path)}
    process = subprocess.run(
        [sys.executable, str(SCRIPT)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert "make quality is skipped" in process.stdout
    assert "scifact/corpus.jsonl" in process.stdout


def test_tasks_of_the_figures_are_in_the_file(quality: ModuleType) -> None:
    config = evaluation_file.load(REPOSITORY / "conf" / "quality.toml")
    assert {task for task, _ in quality.FIGURES} == {task.key for task in config.tasks}
