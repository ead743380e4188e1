"""Published figures, reproduced with real weights by the job and ``e5spark evaluate``.

E5SPARK_TEST_DATA names the directory of the public evaluation sets; they are no part of e5spark.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from e5spark.encoder import int8 as quantized
from e5spark.encoder.prepare import prepare_int8
from e5spark.evaluate import evaluation_file
from e5spark.evaluate import run as evaluation
from e5spark.evaluate.report import TaskResult
from e5spark.model.spec import model_spec

pytestmark = [pytest.mark.data, pytest.mark.large]

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
TOLERANCE = 1e-3
INT8_TOLERANCE = 5e-3
NAMES = {
    "en": "STSBenchmark",
    **{each: f"STSBenchmarkMultilingualSTS ({each})" for each in ("de", "ru", "zh")},
}
Judge = Callable[..., TaskResult]


@pytest.fixture(scope="module")
def data() -> Path:
    directory = os.environ.get("E5SPARK_TEST_DATA")
    if not directory or not (Path(directory) / "stsb").is_dir():
        pytest.skip("E5SPARK_TEST_DATA names no directory with stsb/")
    return Path(directory)


@pytest.fixture
def judge(spark: SparkSession, tmp_path: Path) -> Judge:
    """Evaluates one task with a model that holds MiniLM."""

    def run(model: str, task: str) -> TaskResult:
        path = tmp_path / "eval.toml"
        path.write_text(
            f"""
            [model]
            name = "{model}"
            checkpoint = "{MINILM}"
            [output]
            path = "{tmp_path}/vectors"
            {task}
            """,
            "utf-8",
        )
        return evaluation.run(spark, evaluation_file.load(path))[0]

    return run


def stsb(data: Path, language: str) -> str:
    """The task of a language of STSBenchmark."""
    return f"""
            [tasks.sts]
            kind = "similarity"
            name = "{NAMES[language]}"
            pairs = "{data}/stsb/{language}.tsv"
            """


def scifact(data: Path) -> str:
    """The task SciFact."""
    return f"""
            [tasks.SciFact]
            kind = "retrieval"
            data = "{data}/scifact"
            """


def check(result: TaskResult, metric: str, tolerance: float) -> None:
    """Checks a score against the published figure of the same protocol."""
    value, figure = result.judgement.scores[metric].value, result.published(metric)[0]
    print(f"{result.task.name} {metric}: {value:.6f}, published {figure.value}")
    assert set(figure.differences) <= {"precision"}
    assert value == pytest.approx(figure.value, abs=tolerance)


@pytest.mark.parametrize(
    "language",
    [pytest.param("en", marks=pytest.mark.large_sample), "de", "ru", "zh"],
)
def test_minilm_has_the_published_spearman_on_stsb(
    judge: Judge, data: Path, minilm: str, language: str
) -> None:
    result = judge(minilm, stsb(data, language))
    assert result.judgement.counts == {"pairs": 1379}
    check(result, "spearman", TOLERANCE)


@pytest.mark.large_sample
def test_int8_loses_less_than_promised_on_stsb(
    judge: Judge, data: Path, minilm: str, tmp_path: Path
) -> None:
    lines = (data / "stsb" / "en.tsv").read_text("utf-8").splitlines()[1:]
    sample = [text for line in lines[::4] for text in line.split("\t")[:2]]
    check(judge(quantised(minilm, tmp_path, sample), stsb(data, "en")), "spearman", INT8_TOLERANCE)


def test_minilm_has_the_published_ndcg_on_scifact(judge: Judge, data: Path, minilm: str) -> None:
    result = judge(minilm, scifact(data))
    for metric in ("ndcg@10", "mrr@10", "recall@100"):
        check(result, metric, TOLERANCE)


def test_int8_loses_less_than_promised_on_scifact(
    judge: Judge, data: Path, minilm: str, tmp_path: Path
) -> None:
    lines = (data / "scifact" / "corpus.jsonl").read_text("utf-8").splitlines()[::20]
    rows = map(json.loads, lines)
    sample = [f"{row['title']} {row['text']}".strip() for row in rows]
    result = judge(quantised(minilm, tmp_path, sample), scifact(data))
    check(result, "ndcg@10", INT8_TOLERANCE)


def quantised(model: str, directory: Path, sample: list[str]) -> str:
    """The model in int8, calibrated on a sample."""
    spec = model_spec(model, {"checkpoint": MINILM})
    with pytest.MonkeyPatch.context() as patch:
        # Whether it is faster depends on the machine; what it computes is tested.
        patch.setattr(quantized, "_speedup", lambda before, after: 2.0)
        report = prepare_int8(
            spec, directory / "int8", sample, [""] * len(sample), overflow_safe=None
        )
    print(report["quality"])
    return str(directory / "int8")
