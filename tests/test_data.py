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

from e5spark.spark import embed

pytestmark = pytest.mark.data

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
# MTEB's result store, STSBenchmark and its machine translations, at max length 256.
PUBLISHED = {"en": 0.820325, "de": 0.623971, "ru": 0.555536, "zh": 0.397384}
TOLERANCE = 1e-3
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
    with open(data / "stsb" / f"{language}.tsv", encoding="utf-8", newline="") as file:
        # The English rows that begin with a quotation mark are not quoted.
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        rows = list(reader)
    assert len(rows) == PAIRS
    scores = np.array([float(row["score"]) for row in rows])
    sides = ["sentence1", "sentence2"]
    table = pa.table({"id": range(PAIRS), **{side: [row[side] for row in rows] for side in sides}})
    df = embed(
        spark.createDataFrame(table).repartition(2),
        text=sides,
        role="query",
        model=minilm,
        checkpoint=MINILM,
    )
    found = df.toArrow().sort_by("id")
    one, other = (
        np.array(found[f"{side}_embedding"].to_pylist(), dtype=np.float32) for side in sides
    )
    spearman = float(spearmanr((one * other).sum(axis=1), scores).statistic)
    print(f"{language}: {spearman:.6f}, published {PUBLISHED[language]}")
    assert spearman == pytest.approx(PUBLISHED[language], abs=TOLERANCE)
