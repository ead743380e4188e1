"""e5spark compare: variants are what the job would have stored, and are judged side by side."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from e5spark.cli import main
from e5spark.errors import ConfigError, ModelError
from e5spark.evaluate import compare, derived
from e5spark.evaluate.config import CompareConfig, EvaluationConfig, OutputConfig
from e5spark.evaluate.derived import Storage
from e5spark.evaluate.embedding import VectorTable
from e5spark.job.config import ModelConfig
from e5spark.model.output_type import to_output_type
from e5spark.search.vectors import matrix, vector_column

ROWS, DIM = 40, 16


def unit(seed: int, rows: int = ROWS) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(rows, DIM))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def table(spark: SparkSession, tmp_path: Path) -> Callable[[np.ndarray], VectorTable]:
    def write(vectors: np.ndarray) -> VectorTable:
        lists = pa.array(list(vectors), pa.list_(pa.float32()))
        path = str(tmp_path / "vectors.parquet")
        pq.write_table(pa.table({"id": range(len(vectors)), "embedding": lists}), path)
        df = spark.read.parquet(path)
        column = vector_column(df, "embedding")
        return VectorTable(df=df, id="id", vectors=(column,), judged_by=(), parts={}, report={})

    return write


@pytest.mark.parametrize(
    ("output_type", "dim"),
    [
        ("float16", DIM),
        ("int8", DIM),
        ("uint8", 8),
        ("binary", DIM),
        ("ubinary", 8),
        ("float32", 8),
    ],
)
def test_derived_vectors_are_those_that_the_job_stores(table, output_type: str, dim: int) -> None:
    vectors = unit(0)
    source = table(vectors)
    ranges = derived.ranges([source], dim) if output_type in ("int8", "uint8") else None
    result = derived.derived(source, Storage(output_type=output_type, dim=dim), ranges)
    found = result.df.toArrow().sort_by("id")["embedding"].combine_chunks()

    cut = vectors[:, :dim]
    if dim < DIM:
        cut = cut / np.linalg.norm(cut, axis=1, keepdims=True)
    if ranges is not None:
        np.testing.assert_allclose(ranges, [cut.min(axis=0), cut.max(axis=0)])
    expected = to_output_type(cut, output_type, ranges)
    column = result.vectors[0]
    assert (column.output_type, column.dim) == (output_type, dim)
    decoded = matrix(found, output_type, dim)
    if output_type in ("float32", "float16"):
        np.testing.assert_allclose(decoded, expected, atol=1e-7)
    else:
        stored = found.flatten() if output_type == "int8" else b"".join(found.to_pylist())
        assert (
            np.asarray(bytearray(stored) if isinstance(stored, bytes) else stored)
            .astype(np.uint8)
            .tolist()
            == expected.view(np.uint8).reshape(-1).tolist()
        )


def test_bytes_of_a_vector() -> None:
    bytes = {
        output_type: Storage(output_type=output_type, dim=384).bytes
        for output_type in ("float32", "float16", "int8", "uint8", "binary", "ubinary")
    }
    assert list(bytes.values()) == [1536, 768, 384, 384, 48, 48]


def config(**changes: object) -> EvaluationConfig:
    return EvaluationConfig(
        tasks=(),
        model=None,
        output=OutputConfig(),
        compare=CompareConfig(**changes),
        spark={},
    )


def test_every_output_type_is_compared_in_every_dim() -> None:
    found = list(compare.storages(config(output_types=("float32", "binary"), dims=(16, 8)), 16))
    assert [(each.output_type, each.dim) for each in found] == [
        ("binary", 16),
        ("float32", 8),
        ("binary", 8),
    ]


def test_dim_that_the_vectors_do_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"compare\.dims has 32; the vectors have 16 components"):
        list(compare.storages(config(dims=(32,)), 16))


def test_absent_model_of_the_last_precision_is_refused_before_anything_is_embedded(
    model: str, tmp_path: Path
) -> None:
    absent = config(precisions=("fp32", "int8"), int8=str(tmp_path / "absent"))
    with pytest.raises(ModelError, match="There is no model directory"):
        compare.compare(
            cast("SparkSession", None), replace(absent, model=ModelConfig(name=model, options={}))
        )


def test_command_judges_each_variant_and_ends_with_a_table_and_a_document(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, queries = unit(0), unit(0, 5) + 0.1 * unit(1, 5)
    for name, vectors in (("corpus", corpus), ("queries", queries)):
        lists = pa.array(list(vectors), pa.list_(pa.float32()))
        rows = pa.table({"id": [f"{row}" for row in range(len(vectors))], "embedding": lists})
        pq.write_table(rows, tmp_path / f"{name}.parquet")
    lines = [f"{row}\t{row}\t1" for row in range(5)]
    (tmp_path / "qrels.tsv").write_text("\n".join(lines) + "\n", "utf-8")
    path = tmp_path / "eval.toml"
    path.write_text(
        f"""
        [tasks.own]
        kind = "retrieval"
        corpus = "{tmp_path}/corpus.parquet"
        queries = "{tmp_path}/queries.parquet"
        qrels = "{tmp_path}/qrels.tsv"
        [compare]
        output_types = ["float32", "int8", "binary"]
        dims = [{DIM}, 8]
        """,
        "utf-8",
    )
    assert main(["compare", str(path)]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    variants = json.loads(last)["variants"]
    assert [(each["output_type"], each["dim"], each["bytes_per_vector"]) for each in variants] == [
        ("float32", 16, 64),
        ("int8", 16, 16),
        ("binary", 16, 2),
        ("float32", 8, 32),
        ("int8", 8, 8),
        ("binary", 8, 1),
    ]
    scores = [each["tasks"][0]["scores"]["ndcg@10"]["value"] for each in variants]
    assert scores[0] == 1.0
    assert all(0 < score <= 1 for score in scores)
    assert table[0].split("  ")[0] == "precision"
    assert "1.0000 (+0.0000)" in table[2]
