"""Published figures, reproduced with real weights through Spark.

E5SPARK_TEST_DATA names the directory of the public evaluation sets; they are no part of e5spark.
"""

import csv
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession
from scipy.stats import spearmanr

from e5spark.encoder import quantized
from e5spark.prepare import prepare_int8
from e5spark.spark import embed
from e5spark.spec import model_spec
from tests.frames import to_arrow

pytestmark = pytest.mark.data

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
# MTEB's result store, STSBenchmark and its machine translations, at max length 256.
PUBLISHED = {"en": 0.820325, "de": 0.623971, "ru": 0.555536, "zh": 0.397384}
TOLERANCE = 1e-3
INT8_TOLERANCE = 5e-3
SIDES = ["sentence1", "sentence2"]
PAIRS = 1379


@pytest.fixture(scope="module")
def data() -> Path:
    directory = os.environ.get("E5SPARK_TEST_DATA")
    if not directory or not (Path(directory) / "stsb").is_dir():
        pytest.skip("E5SPARK_TEST_DATA names no directory with stsb/")
    return Path(directory)


@pytest.mark.parametrize("language", PUBLISHED)
def test_minilm_has_the_published_spearman_on_stsb(
    spark: SparkSession, data: Path, minilm: str, language: str
) -> None:
    found = spearman(spark, pairs(data, language), minilm)
    print(f"{language}: {found:.6f}, published {PUBLISHED[language]}")
    assert found == pytest.approx(PUBLISHED[language], abs=TOLERANCE)


def test_int8_loses_less_than_promised_on_stsb(
    spark: SparkSession, data: Path, minilm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whether it is faster is the machine's affair; what it gives is the test's.
    monkeypatch.setattr(quantized, "_speedup", lambda before, after: 2.0)
    rows = pairs(data, "en")
    sample = [row[side] for row in rows[::4] for side in SIDES]
    to = tmp_path / "int8"
    spec = model_spec(minilm, {"checkpoint": MINILM})
    made = prepare_int8(spec, to, sample, [""] * len(sample), overflow_safe=None)
    found = spearman(spark, rows, str(to))
    print(f"int8: {found:.6f}, fp32 {PUBLISHED['en']}; {made['quality']}")
    assert found == pytest.approx(PUBLISHED["en"], abs=INT8_TOLERANCE)


def pairs(data: Path, language: str) -> list[dict[str, str]]:
    """The rows of STSBenchmark's test set: sentence1, sentence2, score."""
    with open(data / "stsb" / f"{language}.tsv", encoding="utf-8", newline="") as file:
        # The English rows that begin with a quotation mark are not quoted.
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(rows) == PAIRS
    return rows


def spearman(spark: SparkSession, rows: list[dict[str, str]], model: str) -> float:
    """Of the cosines of each pair's vectors with its score."""
    scores = [float(row["score"]) for row in rows]
    columns = {side: [row[side] for row in rows] for side in SIDES}
    df = embed(
        spark.createDataFrame(pa.table({"id": range(PAIRS), **columns})).repartition(2),
        text=SIDES,
        role="query",
        model=model,
        checkpoint=MINILM,
    )
    found = to_arrow(df).sort_by("id")
    one, other = (
        np.array(found[f"{side}_embedding"].to_pylist(), dtype=np.float32) for side in SIDES
    )
    return float(spearmanr((one * other).sum(axis=1), scores).statistic)
