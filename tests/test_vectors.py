"""Vectors of every output type as a matrix whose products are scores, and which may be compared."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from e5spark.errors import ColumnError, ConflictError, InputError
from e5spark.model.output_type import to_output_type
from e5spark.search.vectors import VectorColumn, check_comparable, matrix, query_matrix

DIM = 20
RANGES = np.array([[-3.0] * DIM, [3.0] * DIM], np.float32)
VALUES = np.random.default_rng(0).standard_normal((50, DIM)).astype(np.float32)
LISTS = {"float32": pa.float32(), "int8": pa.int8()}
TYPES = ["float32", "float16", "int8", "uint8", "binary", "ubinary"]


def stored(output_type: str, values: np.ndarray = VALUES) -> pa.Array:
    """The vectors as Spark hands them to a worker."""
    rows = to_output_type(values, output_type, RANGES)
    if output_type in LISTS:
        return pa.array(rows.tolist(), pa.list_(LISTS[output_type]))
    return pa.array([row.tobytes() for row in rows], pa.binary())


def scores(output_type: str, array: pa.Array) -> np.ndarray:
    rows = matrix(array, output_type, DIM)
    return query_matrix(rows, output_type=output_type, corpus=output_type) @ rows.T


@pytest.mark.parametrize("output_type", TYPES[2:])
def test_a_score_is_a_cosine(output_type: str) -> None:
    result = scores(output_type, stored(output_type))
    assert np.diag(result) == pytest.approx(1, abs=1e-6)
    assert np.abs(result).max() <= 1 + 1e-6


def test_uint8_gives_the_scores_of_int8() -> None:
    assert np.array_equal(scores("uint8", stored("uint8")), scores("int8", stored("int8")))


def test_binary_gives_the_scores_of_ubinary_which_count_equal_signs() -> None:
    result = scores("binary", stored("binary"))
    assert np.array_equal(result, scores("ubinary", stored("ubinary")))
    differences = ((VALUES > 0)[:, None, :] != (VALUES > 0)[None, :, :]).sum(axis=2)
    assert result == pytest.approx(1 - 2 * differences / DIM, abs=1e-6)


def test_float_queries_are_compared_with_signs() -> None:
    unit = VALUES / np.linalg.norm(VALUES, axis=1, keepdims=True)
    signs = matrix(stored("ubinary"), "ubinary", DIM)
    result = query_matrix(unit, output_type="float32", corpus="ubinary") @ signs.T
    expected = unit @ np.where(VALUES > 0, 1, -1).T / np.sqrt(DIM)
    assert result == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("output_type", TYPES)
def test_a_slice_is_read_where_it_begins(output_type: str) -> None:
    array = stored(output_type)
    expected = matrix(array, output_type, DIM)[7:19]
    assert np.array_equal(matrix(array.slice(7, 12), output_type, DIM), expected)
    assert len(matrix(array.slice(7, 0), output_type, DIM)) == 0


@pytest.mark.parametrize("output_type", TYPES)
def test_another_dim_is_refused(output_type: str) -> None:
    with pytest.raises(ColumnError, match="dimensions"):
        matrix(stored(output_type), output_type, 40)


def test_vectors_of_several_dims_are_refused() -> None:
    with pytest.raises(ColumnError, match="1 to 2 values"):
        matrix(pa.array([[1.0], [1.0, 2.0]], pa.list_(pa.float32())), "float32", None)


def test_half_a_float16_is_refused() -> None:
    with pytest.raises(ColumnError, match="3 bytes, and float16 needs an even number"):
        matrix(pa.array([b"abc", b"def"], pa.binary()), "float16", None)


def test_a_null_component_is_refused() -> None:
    with pytest.raises(InputError, match="null"):
        matrix(pa.array([[1.0, None]], pa.list_(pa.float32())), "float32", None)


def column(output_type: str = "float32", **facts: Any) -> VectorColumn:
    return VectorColumn(name="v", output_type=output_type, facts=facts, fingerprints=None)


@pytest.mark.parametrize(
    ("queries", "corpus"),
    [
        (column(), column()),
        (column(fingerprint="a"), column()),  # nothing is known of one side
        (column(fingerprint="a", dim="8"), column(fingerprint="a", dim="8")),
        (column(fingerprint="a", model="m"), column("binary", fingerprint="b", model="m")),
        (column(model="m", revision=""), column("binary", model="m", revision="c0ffee")),
        (column(), column("float16")),
    ],
)
def test_vectors_that_may_be_compared(queries: VectorColumn, corpus: VectorColumn) -> None:
    check_comparable(queries, corpus)


@pytest.mark.parametrize(
    ("queries", "corpus", "error"),
    [
        (column(), column("int8"), ColumnError),
        (column("binary"), column("ubinary"), ColumnError),
        (column("float16"), column(), ColumnError),
        (column(dim="8"), column(dim="9"), ColumnError),
        (column(fingerprint="a"), column(fingerprint="b"), ConflictError),
        (column(model="m", dim="8"), column("binary", model="n", dim="8"), ConflictError),
    ],
)
def test_vectors_that_must_not_be_compared(
    queries: VectorColumn, corpus: VectorColumn, error: type[Exception]
) -> None:
    with pytest.raises(error):
        check_comparable(queries, corpus)
