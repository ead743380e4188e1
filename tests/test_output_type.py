"""Vectors in other types are those of sentence-transformers, bit for bit, and come from ranges."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pyspark.sql import DataFrame
from pyspark.sql import types as T
from sentence_transformers.util import quantize_embeddings

from e5spark.errors import ConflictError, OptionError
from e5spark.model.output_type import Calibration, load_calibration, to_output_type
from e5spark.model.spec import model_spec
from e5spark.spark import embed, embedding_udf
from e5spark.spark.embedding import plan_model
from tests.oracle import FP32_TOLERANCE, assert_close, reference, rows_of

OURS_TO_THEIRS = ["int8", "uint8", "binary", "ubinary"]
RANGED = ["int8", "uint8"]
DIM = 32
SPARK_TYPES = {
    "float32": T.ArrayType(T.FloatType(), containsNull=False),
    "int8": T.ArrayType(T.ByteType(), containsNull=False),
    "float16": T.BinaryType(),
    "uint8": T.BinaryType(),
    "binary": T.BinaryType(),
    "ubinary": T.BinaryType(),
}
# What the bytes of a binary column are.
DTYPES = {"float16": "<f2", "uint8": "u1", "binary": "i1", "ubinary": "u1"}

components = st.floats(-1.5, 1.5, width=32, allow_subnormal=False)


@st.composite
def vectors_and_ranges(draw):
    """Some components have a range of width zero, some values lie outside theirs."""
    rows, dim = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    vectors = draw(hnp.arrays(np.float32, (rows, dim), elements=components))
    # Multiples of 2^-20: a range of 1e-38 overflows in both, with a warning.
    ends = draw(hnp.arrays(np.int32, (2, dim), elements=st.integers(-(3 << 19), 3 << 19)))
    ranges = (np.sort(ends, axis=0) / 2**20).astype(np.float32)
    flat = draw(hnp.arrays(bool, dim))
    ranges[1, flat] = ranges[0, flat]
    return vectors, ranges


@settings(max_examples=300)
@pytest.mark.parametrize("output_type", OURS_TO_THEIRS)
@given(drawn=vectors_and_ranges())
def test_every_bit_is_that_of_sentence_transformers(output_type, drawn):
    vectors, ranges = drawn
    actual = to_output_type(vectors, output_type, ranges)
    expected = quantize_embeddings(vectors, output_type, ranges=ranges)
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    different = int((actual != expected).sum())
    assert different == 0, f"{different} of {actual.size} values differ"


@pytest.mark.parametrize("output_type", RANGED)
@given(value=components, low=components)
def test_a_range_of_width_zero_divides_by_one(output_type, value, low):
    ranges = np.full((2, 1), low, np.float32)
    vectors = np.full((1, 1), value, np.float32)
    expected = quantize_embeddings(vectors, output_type, ranges=ranges)
    assert to_output_type(vectors, output_type, ranges).tolist() == expected.tolist()


def test_values_at_and_beyond_the_ends_of_a_range_stay_inside_the_type():
    ranges = np.array([[0], [255]], np.float32)
    vectors = np.array([[-9], [0], [255], [999]], np.float32)
    assert to_output_type(vectors, "uint8", ranges).ravel().tolist() == [0, 0, 255, 255]
    assert to_output_type(vectors, "int8", ranges).ravel().tolist() == [-128, -128, 127, 127]


def test_float16_keeps_the_nearest_values():
    vectors = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)
    halves = to_output_type(vectors, "float16")
    assert halves.dtype == np.dtype("<f2")
    assert (halves == vectors.astype(np.float16)).all()


def test_float32_is_the_vector_itself():
    vectors = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)
    assert to_output_type(vectors, "float32") is vectors


def test_bits_are_packed_eight_to_a_byte_first_component_first():
    vectors = np.array([[1, -1, -1, -1, -1, -1, -1, 1, 1, 0]], np.float32)
    assert to_output_type(vectors, "ubinary").tolist() == [[0b10000001, 0b10000000]]
    assert to_output_type(vectors, "binary").tolist() == [[1, 0]]


@pytest.mark.parametrize("output_type", RANGED)
def test_ranges_never_come_from_the_batch(output_type):
    with pytest.raises(OptionError, match="needs the ranges of the whole corpus"):
        to_output_type(np.ones((4, 4), np.float32), output_type)


# Calibrations


@pytest.fixture
def calibration(model, tmp_path):
    """Makes a file of ranges that belong to the model's vectors under these options."""

    def make(*, low: float = -0.4, high: float = 0.4, **options: Any) -> str:
        dim = options.get("dim", DIM)
        random = np.random.default_rng(7)
        lowest = (low - random.random(dim, dtype=np.float32) / 10).astype(np.float32)
        highest = (high + random.random(dim, dtype=np.float32) / 10).astype(np.float32)
        highest[3] = lowest[3]
        path = tmp_path / f"calibration{len(list(tmp_path.iterdir()))}.json"
        Calibration(
            lowest=tuple(lowest.tolist()),
            highest=tuple(highest.tolist()),
            rows=100,
            fingerprint=plan_model(model_spec(model, options)).fingerprint.digest,
        ).save(path)
        return str(path)

    return make


def test_a_stored_calibration_reads_back_bit_for_bit(calibration):
    path = calibration()
    stored = load_calibration(path)
    random = np.random.default_rng(7)
    lowest = (-0.4 - random.random(DIM, dtype=np.float32) / 10).astype(np.float32)
    assert stored.ranges.dtype == np.float32
    assert stored.ranges[0].tobytes() == lowest.tobytes()
    assert stored.rows == 100


def spoiled(path: str, **changes: object) -> str:
    with open(path, encoding="utf-8") as file:
        document = {**json.load(file), **changes}
    with open(path, "w", encoding="utf-8") as file:
        json.dump({key: value for key, value in document.items() if value is not None}, file)
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"e5spark_calibration": 0},
        {"e5spark_calibration": "1"},
        {"fingerprint": 5},
        {"e5spark_calibration": None},
        {"lowest": None},
        {"lowest": 3},
        {"fingerprint": None},
        {"unknown": 1},
        {"lowest": ["a"] * DIM},
        {"highest": [0.1] * (DIM - 1)},
        {"lowest": [[0.1]] * DIM},
        {"highest": [-9.0] * DIM},
    ],
    ids=str,
)
def test_a_file_that_is_no_calibration_is_refused(model, calibration, changes):
    path = spoiled(calibration(), **changes)
    with pytest.raises(OptionError, match=r"The calibration .* cannot be read"):
        plan_model(model_spec(model, {"output_type": "int8", "calibration": path}))


def test_a_calibration_of_a_later_release_is_refused_with_the_way_out(model, calibration):
    path = spoiled(calibration(), e5spark_calibration=99)
    with pytest.raises(OptionError, match="has format 99; this e5spark reads formats up to 1"):
        plan_model(model_spec(model, {"output_type": "int8", "calibration": path}))


def test_a_calibration_that_is_no_json_is_refused(model, tmp_path):
    path = tmp_path / "calibration.json"
    path.write_text("lowest: 3")
    with pytest.raises(OptionError, match=r"The calibration .* cannot be read"):
        plan_model(model_spec(model, {"output_type": "int8", "calibration": str(path)}))


def test_a_calibration_that_is_not_there_is_refused(model, tmp_path):
    path = str(tmp_path / "none.json")
    with pytest.raises(OptionError, match=r"The calibration .* cannot be read"):
        plan_model(model_spec(model, {"output_type": "uint8", "calibration": path}))


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "cls"},
        {"normalize": False},
        {"max_tokens": 64},
        {"prompts": {"query": "q: ", "passage": "p: "}},
        {"precision": "bf16"},
        {"long_text": "mean"},
        {"dim": 16, "force_dim": True},
    ],
    ids=str,
)
def test_a_calibration_of_other_vectors_is_refused(model, calibration, options):
    path = calibration()
    with pytest.raises(ConflictError, match="was made from other vectors"):
        plan_model(model_spec(model, {"output_type": "int8", "calibration": path, **options}))


def test_a_calibration_of_the_same_vectors_under_other_batch_sizes_is_taken(model, calibration):
    options = {"token_budget": 100, "sort_window": 7, "device": "cpu", "calibration": calibration()}
    plan = plan_model(model_spec(model, {"output_type": "int8", **options}))
    assert plan.calibration.rows == 100


def test_vectors_of_different_ranges_or_types_have_different_fingerprints(model, calibration):
    wide, narrow = calibration(), calibration(high=0.3)
    plans = [
        plan_model(model_spec(model, {"output_type": kind, "calibration": path}))
        for kind, path in (("int8", wide), ("int8", narrow), ("uint8", wide))
    ]
    plans.append(plan_model(model_spec(model, {})))
    assert len({plan.fingerprint.digest for plan in plans}) == 4


@pytest.mark.parametrize("output_type", RANGED)
def test_without_a_calibration_they_are_refused_before_anything_runs(model, output_type):
    with pytest.raises(OptionError, match="needs calibration"):
        model_spec(model, {"output_type": output_type})


def test_an_unknown_output_type_is_refused(model):
    with pytest.raises(OptionError, match="output_type is 'int4'; it must be one of float32, "):
        model_spec(model, {"output_type": "int4"})


# Through Spark


def typed(rows: list[dict[str, Any]], output_type: str) -> np.ndarray:
    """The vectors of the rows that have one, in the type that they are of."""
    values = [row["embedding"] for row in rows if row["embedding"] is not None]
    if output_type in DTYPES:
        return np.stack([np.frombuffer(value, DTYPES[output_type]) for value in values])
    return np.array(values, {"float32": np.float32, "int8": np.int8}[output_type])


@pytest.mark.usefixtures("udf_kind")
@pytest.mark.parametrize("api", ["embed", "embedding_udf"])
def test_a_column_of_each_type_equals_sentence_transformers(
    make_table: Callable[..., DataFrame],
    texts: tuple[str, ...],
    model: str,
    calibration: Callable[..., str],
    api: str,
) -> None:
    # One job after another: several UDFs in one would each have workers of their own.
    docs = make_table([*texts[:50], None, " ", *texts[50:90]], partitions=1).cache()
    path = calibration()
    columns = {}
    for output_type, spark_type in SPARK_TYPES.items():
        options: dict[str, Any] = {"role": "passage", "model": model, "output_type": output_type}
        if output_type in RANGED:
            options["calibration"] = path
        if api == "embed":
            df = embed(docs, text="text", **options)
        else:
            df = docs.withColumn("embedding", embedding_udf(**options)("text"))
        assert df.schema["embedding"].dataType == spark_type
        rows = rows_of(df.select("id", "embedding"))
        assert [row["id"] for row in rows if row["embedding"] is None] == [50, 51], output_type
        columns[output_type] = typed(rows, output_type)
    docs.unpersist()
    ranges = load_calibration(path).ranges
    for output_type in OURS_TO_THEIRS:
        expected = quantize_embeddings(columns["float32"], output_type, ranges=ranges)
        assert columns[output_type].dtype == expected.dtype
        assert columns[output_type].shape == expected.shape
        different = int((columns[output_type] != expected).sum())
        assert different == 0, f"{output_type}: {different} of {expected.size} values differ"
    assert (columns["float16"] == columns["float32"].astype(np.float16)).all()


def test_the_floats_that_are_quantised_are_those_of_transformers(
    make_table: Callable[..., DataFrame], texts: tuple[str, ...], model: str
) -> None:
    rows = rows_of(
        embed(make_table(texts[:40]), text="text", role="query", model=model, output_type="float16")
    )
    expected = reference(model, texts[:40], prompt="query: ")
    # Half of the distance between two float16 near 1, and what fp32 may differ.
    assert_close(typed(rows, "float16"), expected, 2**-12 + FP32_TOLERANCE)


@pytest.mark.parametrize("output_type", ["int8", "binary"])
def test_dimensions_are_cut_before_they_are_quantised(
    make_table: Callable[..., DataFrame],
    texts: tuple[str, ...],
    model: str,
    calibration: Callable[..., str],
    output_type: str,
) -> None:
    options: dict[str, Any] = {"dim": 8, "force_dim": True}
    docs = make_table(texts[:20])
    floats = typed(
        rows_of(embed(docs, text="text", role="query", model=model, **options)), "float32"
    )
    path = calibration(**options)
    rows = rows_of(
        embed(
            docs,
            text="text",
            role="query",
            model=model,
            output_type=output_type,
            calibration=path if output_type == "int8" else None,
            **options,
        )
    )
    expected = quantize_embeddings(floats, output_type, ranges=load_calibration(path).ranges)
    assert typed(rows, output_type).tolist() == expected.tolist()
