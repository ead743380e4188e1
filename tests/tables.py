"""Tables of ids and texts: what a job reads, and what it must have written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.oracle import FP32_TOLERANCE, assert_close, reference

Job = dict[str, dict[str, Any]]
Rows = Mapping[Any, str | None]


def table_of(rows: Rows) -> pa.Table:
    """The columns id and body."""
    ids = pa.array(list(rows), None if rows else pa.int64())
    return pa.table({"id": ids, "body": pa.array(rows.values(), pa.string())})


def rows_of(out: Path) -> list[dict[str, Any]]:
    """The rows of a Parquet table."""
    return pq.read_table(out).to_pylist()


def check(wanted: Rows, *, out: Path, model: str) -> None:
    """The table has each row once, with the right vector."""
    rows = rows_of(out)
    assert sorted((row["id"], row["body"] or "") for row in rows) == sorted(
        (number, text or "") for number, text in wanted.items()
    )
    good = [row for row in rows if row["body"]]
    vectors = np.array([row["embedding"] for row in good], np.float32)
    texts = tuple(row["body"] for row in good)
    assert_close(vectors, reference(model, texts, prompt="passage: "), FP32_TOLERANCE)


def check_rows(rows: list[dict[str, Any]], wanted: Mapping[int, str], model: str) -> float:
    """Each row is there once with its own vector; returns the worst difference of a component."""
    rows = sorted(rows, key=lambda row: row["id"])
    assert [(row["id"], row["body"]) for row in rows] == sorted(wanted.items())
    vectors = np.array([row["embedding"] for row in rows], np.float32)
    expected = reference(model, tuple(row["body"] for row in rows), prompt="passage: ")
    assert_close(vectors, expected, FP32_TOLERANCE)
    return float(np.abs(vectors.astype(np.float64) - expected).max())


def check_nothing_left(out: Path) -> None:
    """No record is pending, and nothing is left of a run's work list or of staged rows."""
    left = [*out.glob("_e5spark/staging/*"), *out.glob("_e5spark/work/*")]
    assert [*left, *out.glob("_e5spark/commits/*.json")] == []
