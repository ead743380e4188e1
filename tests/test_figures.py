"""Figures of vectors: a worker's against plain numpy, and sums that do not depend on the parts."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e5spark.encoder.encoder import Encoding
from e5spark.job.figures import Figures, merge, observed
from e5spark.model.output_type import Calibration
from e5spark.model.registry import Recipe
from e5spark.model.resolve import Plan
from e5spark.model.spec import model_spec
from e5spark.spark.results import FIGURES, result_array, result_type

DIM = 16
RANGES = Calibration(lowest=(-4.0,) * DIM, highest=(4.0,) * DIM, rows=9, fingerprint="f")


def plan(output_type="float32"):
    options = {"precision": "fp32", "output_type": output_type}
    if output_type in ("int8", "uint8"):
        options["calibration"] = "ranges.json"
    return Plan(
        spec=model_spec("/models/e5", options),
        recipe=Recipe(dim=DIM, pooling="mean", prompts={}, max_tokens=512),
        weights=None,
        calibration=RANGES,
    )


def encoding(vectors, errors=None):
    rows = len(vectors)
    return Encoding(
        vectors=vectors,
        n_tokens=np.ones(rows, np.int32),
        truncated=np.zeros(rows, bool),
        owner=np.arange(rows, dtype=np.int32),
        windows=[],
        already_prompted=np.zeros(rows, bool),
        errors=errors or {},
    )


def measured(vectors, *, errors=None, encoded=None, texts=None, output_type="float32"):
    """The figures of each text: norms and cosines, None where there is none."""
    encoded = np.arange(len(vectors)) if encoded is None else np.array(encoded, np.int64)
    status = ["null_text"] * (texts or len(vectors))
    for number in encoded:
        status[number] = "ok"
    array = result_array(
        encoding(vectors, errors),
        encoded=encoded,
        status=status,
        errors={},
        plan=plan(output_type),
        figures=True,
    )
    return [array.field(name).to_pylist() for name in FIGURES]


def random_vectors(rows, scale=1.0):
    return np.random.default_rng(rows).normal(0, scale, (rows, DIM)).astype(np.float32)


@pytest.mark.parametrize("output_type", ["float32", "int8", "uint8", "binary", "ubinary"])
def test_figures_are_those_of_the_float32_vectors_whatever_is_stored(output_type):
    vectors = random_vectors(50)
    norms, cosines = measured(vectors, output_type=output_type)
    np.testing.assert_allclose(norms, np.linalg.norm(vectors, axis=1), rtol=1e-6)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    # Each vector has one partner, and each is the partner of one.
    partners = np.abs(unit @ unit.T - np.array(cosines)[:, None]).argmin(axis=1)
    assert sorted(partners) == list(range(50))
    assert (partners != np.arange(50)).all()


def test_float16_that_overflows_shows_in_the_norm():
    vectors = random_vectors(4)
    vectors[2, 3] = 70_000
    with np.errstate(over="ignore"):
        norms, cosines = measured(vectors, output_type="float16")
    assert np.isfinite(norms).tolist() == [True, True, False, True]
    assert cosines[2] is None


def test_texts_without_a_vector_have_no_figures():
    vectors = random_vectors(3)
    norms, cosines = measured(vectors, errors={1: "broken"}, encoded=[0, 2, 4], texts=6)
    assert [norm is not None for norm in norms] == [True, False, False, False, True, False]
    expected = np.linalg.norm(vectors[[0, 2]], axis=1)
    np.testing.assert_allclose([norms[0], norms[4]], expected, rtol=1e-6)
    # The only two vectors are a pair.
    assert cosines[0] == cosines[4] is not None


def test_a_vector_alone_and_a_vector_of_zeros_have_no_pair():
    assert measured(random_vectors(1))[1] == [None]
    vectors = random_vectors(2)
    vectors[0] = 0
    norms, cosines = measured(vectors)
    assert norms[0] == 0
    assert cosines == [None, None]


def test_a_window_without_vectors_has_no_figures():
    norms, cosines = measured(np.zeros((0, DIM), np.float32), encoded=[], texts=2)
    assert norms == cosines == [None, None]


def test_the_columns_of_one_row_are_no_pair():
    """Row r of text column c is text c * rows + r."""
    for columns in (2, 3, 4):
        rows = 30
        basis = np.zeros((rows, DIM), np.float32)
        basis[np.arange(rows), np.arange(rows) % DIM] = 1
        vectors = np.tile(basis, (columns, 1))
        _, cosines = measured(vectors)
        assert np.mean(cosines) < 0.5


def test_result_and_declared_type_agree():
    array = result_array(
        encoding(random_vectors(3)),
        encoded=np.arange(3),
        status=["ok"] * 3,
        errors={},
        plan=plan(),
        figures=True,
    )
    assert isinstance(array, pa.StructArray)
    assert [field.name for field in array.type] == result_type(plan(), figures=True).names
    assert result_type(plan()).names == result_type(plan(), figures=True).names[: -len(FIGURES)]


numbers = st.integers(0, 1000)
optional = st.one_of(st.none(), st.integers(0, 1000))
figures = st.builds(
    Figures,
    **dict.fromkeys(["vectors", "errors", "truncated", "not_finite", "zeros", "pairs"], numbers),
    **dict.fromkeys(
        ["lowest_norm", "highest_norm", "distinct_texts", "distinct_vectors"], optional
    ),
    cosine_sum=st.integers(-1000, 1000).map(float),
)


@given(st.lists(figures, max_size=6), st.integers(0, 6))
def test_figures_do_not_depend_on_how_the_vectors_are_divided(parts, cut):
    assert merge(parts) == merge([merge(parts[:cut]), merge(parts[cut:])])
    assert merge(parts) == merge(parts[::-1])


@given(figures)
def test_merging_with_no_vectors_changes_nothing(part):
    assert merge([part]) == merge([part, Figures()]) == part


@given(figures)
def test_shares_are_shares(part):
    for share in (part.equal_share, part.error_share):
        assert share is None or 0 <= share <= 1


def test_no_vectors_have_no_shares_and_no_cosines():
    values = {name: value for name, value in Figures().as_dict().items() if value is not None}
    assert values == {"vectors": 0, "not_finite": 0, "zeros": 0}


def test_observed_values_that_spark_leaves_null_take_their_defaults():
    values = dict.fromkeys([field.name for field in dataclasses.fields(Figures)], None)
    result = observed({**values, "error": 2, "vectors": 3, "tokens": 70})
    assert result == Figures(vectors=3, errors=2)
