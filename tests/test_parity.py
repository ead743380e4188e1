"""Vectors through Spark are those of transformers, whatever the partitioning and the company."""

from collections.abc import Callable

import numpy as np
import pytest
from pyspark.sql import DataFrame

from e5spark.spark import embed
from tests.oracle import FP32_TOLERANCE, INVARIANCE_TOLERANCE, assert_close, reference, vectors_of

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
# Positions that begin at 2, pad id 1 and a SentencePiece tokenizer: what a worker could get wrong
# is most visible in this shape. It has every partitioning and both kinds of UDF; the others, whose
# own parity test_encoder.py covers, have one run each.
HARDEST = "xlmr_unigram"
OTHERS = ["bert_wordpiece", "bert_unigram"]


@pytest.mark.parametrize("partitions", [1, 3, 17])
@pytest.mark.usefixtures("udf_kind")
def test_vectors_equal_transformers_however_the_table_is_partitioned(
    make_table: Callable[..., DataFrame],
    models: dict[str, str],
    texts: tuple[str, ...],
    partitions: int,
) -> None:
    docs = make_table(texts, partitions=partitions)
    vectors = vectors_of(embed(docs, text="text", role="passage", model=models[HARDEST]))
    expected = reference(models[HARDEST], texts, prompt="passage: ")
    assert_close(vectors, expected, FP32_TOLERANCE)


@pytest.mark.parametrize("shape", OTHERS)
def test_vectors_of_the_other_shapes_equal_transformers(
    make_table: Callable[..., DataFrame],
    models: dict[str, str],
    texts: tuple[str, ...],
    shape: str,
) -> None:
    docs = make_table(texts, partitions=3)
    vectors = vectors_of(embed(docs, text="text", role="passage", model=models[shape]))
    expected = reference(models[shape], texts, prompt="passage: ")
    assert_close(vectors, expected, FP32_TOLERANCE)


@pytest.mark.parametrize("shape", [HARDEST, *OTHERS])
def test_a_query_gets_the_prompt_of_queries(
    make_table: Callable[..., DataFrame],
    models: dict[str, str],
    texts: tuple[str, ...],
    shape: str,
) -> None:
    docs = make_table(texts[:100])
    vectors = vectors_of(embed(docs, text="text", role="query", model=models[shape]))
    queries = reference(models[shape], texts[:100], prompt="query: ")
    passages = reference(models[shape], texts[:100], prompt="passage: ")
    assert_close(vectors, queries, FP32_TOLERANCE)
    assert np.abs(vectors - passages).max() > 100 * FP32_TOLERANCE


@pytest.mark.large
@pytest.mark.large_sample
@pytest.mark.parametrize("partitions", [1, 17])
def test_minilm_vectors_equal_transformers(
    make_table: Callable[..., DataFrame],
    minilm: str,
    texts: tuple[str, ...],
    partitions: int,
) -> None:
    """Real weights, which take 20 s for 1,000 texts; the tiny shapes have all of them."""
    some = texts[:200]
    docs = make_table(some, partitions=partitions)
    vectors = vectors_of(embed(docs, text="text", role="passage", model=minilm, checkpoint=MINILM))
    expected = reference(minilm, some, prompt="", max_tokens=256)
    assert_close(vectors, expected, FP32_TOLERANCE)


@pytest.mark.parametrize("shape", [HARDEST, *OTHERS])
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
    assert_close(vector(*shorter, *longer, partitions=5), alone, INVARIANCE_TOLERANCE)
    if shape == HARDEST:
        assert_close(vector(*shorter), alone, INVARIANCE_TOLERANCE)
        assert_close(vector(*longer), alone, INVARIANCE_TOLERANCE)
