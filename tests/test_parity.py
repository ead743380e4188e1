"""Vectors through Spark are those of transformers, whatever the partitioning and the company."""

from collections.abc import Callable

import numpy as np
import pytest
from pyspark.sql import DataFrame

from e5spark.spark import embed
from tests.oracle import FP32_TOLERANCE, INVARIANCE_TOLERANCE, assert_close, reference, vectors_of

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
SHAPES = ["bert_wordpiece", "xlmr_unigram", "bert_unigram"]


@pytest.mark.parametrize("partitions", [1, 3, 17])
@pytest.mark.usefixtures("udf_kind")
@pytest.mark.parametrize("shape", SHAPES)
def test_vectors_equal_transformers_however_the_table_is_partitioned(
    make_table: Callable[..., DataFrame],
    models: dict[str, str],
    texts: tuple[str, ...],
    shape: str,
    partitions: int,
) -> None:
    docs = make_table(texts, partitions=partitions)
    found = vectors_of(embed(docs, text="text", role="passage", model=models[shape]))
    expected = reference(models[shape], texts, prompt="passage: ")
    assert_close(found, expected, FP32_TOLERANCE)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_query_gets_the_prompt_of_queries(
    make_table: Callable[..., DataFrame],
    models: dict[str, str],
    texts: tuple[str, ...],
    shape: str,
) -> None:
    docs = make_table(texts[:100])
    found = vectors_of(embed(docs, text="text", role="query", model=models[shape]))
    queries = reference(models[shape], texts[:100], prompt="query: ")
    passages = reference(models[shape], texts[:100], prompt="passage: ")
    assert_close(found, queries, FP32_TOLERANCE)
    assert np.abs(found - passages).max() > 100 * FP32_TOLERANCE


@pytest.mark.parametrize(("partitions", "count"), [(17, 1000), (1, 100), (3, 100)])
def test_minilm_vectors_equal_transformers(
    make_table: Callable[..., DataFrame],
    minilm: str,
    texts: tuple[str, ...],
    partitions: int,
    count: int,
) -> None:
    """1,000 texts take 20 s, so two of the partitionings run on a tenth; see the tiny shapes."""
    docs = make_table(texts[:count], partitions=partitions)
    found = vectors_of(embed(docs, text="text", role="passage", model=minilm, checkpoint=MINILM))
    expected = reference(minilm, texts[:count], prompt="", max_tokens=256)
    assert_close(found, expected, FP32_TOLERANCE)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_text_has_one_vector_in_any_company(
    make_table: Callable[..., DataFrame],
    models: dict[str, str],
    texts: tuple[str, ...],
    shape: str,
) -> None:
    by_length = sorted(texts, key=len)
    text, shorter, longer = by_length[500], by_length[300:340], by_length[-40:]

    def vector(*company: str, partitions: int = 1) -> np.ndarray:
        docs = make_table([text, *company], partitions=partitions)
        return vectors_of(embed(docs, text="text", role="query", model=models[shape]))[0]

    alone = vector()
    assert_close(vector(*shorter), alone, INVARIANCE_TOLERANCE)
    assert_close(vector(*longer), alone, INVARIANCE_TOLERANCE)
    assert_close(vector(*shorter, *longer, partitions=5), alone, INVARIANCE_TOLERANCE)
