"""mteb's own task code judges vectors that a job wrote, offline."""

import csv
import os
from pathlib import Path

import mteb
import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict
from mteb.types import PromptType
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from e5spark.errors import ConflictError, InputError
from e5spark.evaluate import metrics
from e5spark.evaluate.mteb_model import StoredVectors
from tests.frames import from_arrow

SENTENCES = ("sentence1", "sentence2")


def stsb() -> list[dict[str, str]]:
    """STSBenchmark's English test set."""
    directory = os.environ.get("E5SPARK_TEST_DATA")
    path = Path(directory or "") / "stsb" / "en.tsv"
    if not directory or not path.is_file():
        pytest.skip("E5SPARK_TEST_DATA names no directory with stsb/en.tsv")
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def table(spark: SparkSession, texts: list[str], seed: int = 0):
    """A job's output: texts, and vectors at random."""
    vectors = np.random.default_rng(seed).normal(size=(len(texts), 16)).astype(np.float32)
    columns = {"text": texts, "embedding": pa.array(list(vectors), pa.list_(pa.float32()))}
    return from_arrow(spark, pa.table(columns)), dict(zip(texts, vectors, strict=True))


@pytest.mark.data
@pytest.mark.filterwarnings("ignore:The task 'STSBenchmark' is superseded:UserWarning")
def test_mteb_gives_the_score_of_our_own_metrics(spark: SparkSession) -> None:
    rows = stsb()
    texts = sorted({row[side] for row in rows for side in SENTENCES})
    df, vectors = table(spark, texts)
    model = StoredVectors("intfloat/e5-small-v2").add(df, role="query")

    task = mteb.get_task("STSBenchmark")
    columns = {side: [row[side] for row in rows] for side in SENTENCES}
    scores = [float(row["score"]) for row in rows]
    task.dataset = DatasetDict({"test": Dataset.from_dict({**columns, "score": scores})})
    task.data_loaded = True
    result = mteb.evaluate(model, task, cache=None, show_progress_bar=False, co2_tracker=False)

    sides = [np.stack([vectors[row[side]] for row in rows]) for side in SENTENCES]
    expected = metrics.spearman(metrics.cosines(*sides), np.array(scores))
    found = result.task_results[0].scores["test"][0]["cosine_spearman"]
    assert found == pytest.approx(expected, abs=1e-6)


def test_role_follows_the_prompt_type(spark: SparkSession) -> None:
    passages, as_passage = table(spark, ["a", "b"], seed=1)
    queries, as_query = table(spark, ["a"], seed=2)
    model = StoredVectors("/models/e5").add(passages, role="passage").add(queries, role="query")
    batches = [{"text": ["b"]}, {"text": ["a"]}]
    found = model.encode(batches, prompt_type=PromptType.document)
    np.testing.assert_array_equal(found, [as_passage["b"], as_passage["a"]])
    for prompt_type in (PromptType.query, None):
        found = model.encode([{"text": ["a"]}], prompt_type=prompt_type)
        np.testing.assert_array_equal(found, [as_query["a"]])
    with pytest.raises(InputError, match="1 of mteb's 2 texts have no vector with role 'query'"):
        model.encode(batches)


def test_vectors_of_another_model_are_refused(spark: SparkSession) -> None:
    df, _ = table(spark, ["a"])
    one, other = (
        df.withColumn("embedding", F.col("embedding").alias("e", metadata=metadata))
        for metadata in ({"e5spark.fingerprint": "a" * 64}, {"e5spark.fingerprint": "b" * 64})
    )
    model = StoredVectors("intfloat/e5-small-v2").add(one, role="query")
    with pytest.raises(ConflictError, match="fingerprint"):
        model.add(other, role="passage")
