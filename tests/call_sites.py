"""Calls of the public API as mypy must see them; ``make check`` reads this, nothing runs it.

A line with ``type: ignore`` is a wrong call: mypy reports an ignore that nothing needs, so that a
wrong call which passes the type checker fails here.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

import e5spark
from e5spark import E5Embedder, Encoder, embed, embedding_udf, errors

MODEL = "intfloat/e5-small-v2"


def right_calls(docs: DataFrame) -> None:
    """Each way to call the API that the documentation shows."""
    vectors: DataFrame = embed(docs, text="body", role="passage", model=MODEL)
    vectors = docs.transform(embed, text="body", role="query", model=MODEL)
    vectors = embed(docs, text=["title", "body"], join=". ", role=F.col("kind"), model=MODEL)
    vectors = embed(docs, text="body", role="query", model=MODEL, max_tokens=128, precision="bf16")
    udf: Callable[..., Column] = embedding_udf(role="query", model=MODEL, output_type="binary")
    vectors.withColumn("embedding", udf("body"))
    stage = E5Embedder(inputCol="body", role="query", model=MODEL, max_tokens=128).setOutputCol("v")
    vectors = stage.transform(docs)
    encoder: Encoder = Encoder.load(MODEL, threads=4, dim=128, force_dim=True)
    array: npt.NDArray[np.float32] = encoder.encode(["a text"], role="query")
    code: int = errors.ModelError("No model.").exit_code
    version: str = e5spark.__version__
    del array, code, version


def wrong_calls(docs: DataFrame, encoder: Encoder, anything: Any) -> None:
    """Calls that a type checker refuses."""
    embed(docs, text="body", model=MODEL)  # type: ignore[call-arg]  # no role
    embed(docs, "body", role="query", model=MODEL)  # type: ignore[call-arg]  # text by position
    embed(docs, text=F.col("body"), role="query", model=MODEL)  # type: ignore[arg-type]
    embed(docs, text="body", role=None, model=MODEL)  # type: ignore[arg-type]
    embed(docs, text="body", role="query", model=MODEL, join=5)  # type: ignore[arg-type]
    embed(docs, text="body", role="query", model=MODEL, widow=1)  # type: ignore[call-arg]
    embed(docs, text="body", role="query", model=MODEL, precision="fp8")  # type: ignore[arg-type]
    embedding_udf("query", model=MODEL)  # type: ignore[call-arg]  # role by position
    embedding_udf(role=F.col("kind"), model=MODEL)  # type: ignore[arg-type]
    E5Embedder("body", role="query", model=MODEL)  # type: ignore[call-arg]  # by position
    E5Embedder(inputCol="body", widow=1)  # type: ignore[call-arg]
    encoder.encode(["a text"])  # type: ignore[call-arg]  # no role
    encoder.encode([b"bytes"], role="query")  # type: ignore[list-item]
    e5spark.embedd(anything)  # type: ignore[attr-defined]
