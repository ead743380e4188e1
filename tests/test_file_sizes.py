"""The sizes of the output's files, with ``run.file_megabytes`` and without."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.oracle import FP32_TOLERANCE, assert_close, reference
from tests.tables import Job, table_of

ROWS = 1100
DOCS = {number: f"Text number {number} of many." for number in range(ROWS)}


@pytest.fixture
def docs(tmp_path: Path) -> pa.Table:
    """DOCS with 2 kB in each row that no codec makes smaller."""
    noise = pa.array([os.urandom(2000) for _ in DOCS], pa.binary())
    table = table_of(DOCS).append_column("noise", noise)
    pq.write_table(table, tmp_path / "docs.parquet")
    return table


@pytest.mark.parametrize("has_ids", [True, False])
def test_files_have_the_size_that_is_asked_for(
    embed: Callable[..., Any], base: Job, docs: pa.Table, tmp_path: Path, model: str, has_ids: bool
) -> None:
    """2.3 MB in chunks of 250 rows, whose two tasks would write ten files."""
    if not has_ids:
        del base["input"]["id"]
    outcome = embed("run.file_megabytes=1", "run.chunk_rows=250", "run.partitions=2")
    assert (outcome["code"], outcome["embedded"], outcome["model_rows"]) == (0, ROWS, ROWS)
    sizes = megabytes(tmp_path / "out")
    assert len(sizes) == 2
    assert all(0.8 < size < 1.3 for size in sizes)
    written = pq.read_table(tmp_path / "out", columns=["id", "body", "noise", "embedding"])
    written = written.sort_by("id")
    assert written.select(["id", "noise"]) == docs.select(["id", "noise"])
    vectors = np.array(written["embedding"].to_pylist(), np.float32)
    texts = tuple(written["body"].to_pylist())
    assert_close(vectors, reference(model, texts, prompt="passage: "), FP32_TOLERANCE)


def test_equal_texts_without_ids_do_not_end_in_one_file(
    embed: Callable[..., Any], base: Job, docs: pa.Table, tmp_path: Path
) -> None:
    del base["input"]["id"]
    texts = pa.array([None if number % 2 else "N/A" for number in range(ROWS)], pa.string())
    table = docs.set_column(docs.column_names.index("body"), "body", texts)
    pq.write_table(table, tmp_path / "docs.parquet")
    outcome = embed("run.file_megabytes=1")
    assert (outcome["code"], outcome["rows"], outcome["chunks"]) == (0, ROWS, 1)
    assert len(megabytes(tmp_path / "out")) == 2
    assert all(0.8 < size < 1.6 for size in megabytes(tmp_path / "out"))


def test_a_large_chunk_has_several_files(
    embed: Callable[..., Any], docs: pa.Table, tmp_path: Path
) -> None:
    """A chunk of all rows, with a task for each slot: as many files as its bytes ask for."""
    outcome = embed("run.file_megabytes=1")
    assert (outcome["code"], outcome["embedded"], outcome["chunks"]) == (0, ROWS, 1)
    assert all(0.8 < size < 1.6 for size in megabytes(tmp_path / "out"))


def test_a_chunk_of_few_rows_has_one_file(
    embed: Callable[..., Any], docs: pa.Table, tmp_path: Path
) -> None:
    outcome = embed("run.file_megabytes=256", "run.partitions=3", "run.chunk_rows=10")
    assert (outcome["code"], outcome["embedded"], outcome["chunks"]) == (0, ROWS, 1)
    assert len(megabytes(tmp_path / "out")) == 1


def megabytes(table: Path) -> list[float]:
    return [file.stat().st_size / (1 << 20) for file in table.glob("*.parquet")]
