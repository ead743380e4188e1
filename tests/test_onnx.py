"""ONNX models as checkpoints: the weights are read out of the graph, and wrong files refused."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

from e5spark.encoder import Encoder
from e5spark.errors import ModelError
from e5spark.model import onnx as reader
from e5spark.model.checkpoint import locate
from e5spark.model.spec import model_spec
from tests import onnx_models
from tests.oracle import FP32_TOLERANCE, assert_close, reference
from tests.texts import mixed_texts

SHAPES = ("bert_wordpiece", "xlmr_unigram", "bert_unigram")
RECIPE = {"pooling": "mean", "normalize": True, "prompts": {"query": "query: ", "passage": ""}}
TEXTS = tuple(mixed_texts(20))


@pytest.fixture(scope="module")
def graphs(models, tmp_path_factory):
    """Shape to ONNX file, exported once."""
    folder = tmp_path_factory.mktemp("graphs")
    return {
        shape: onnx_models.export(Path(models[shape]), folder / f"{shape}.onnx") for shape in SHAPES
    }


@pytest.fixture
def bare(graphs, models, tmp_path):
    """A directory of a graph and a tokenizer.json, as the jar has them."""
    return onnx_models.directory(
        tmp_path / "bare",
        {
            "e5.onnx": graphs["bert_wordpiece"],
            "e5-tokenizer.json": Path(models["bert_wordpiece"]) / "tokenizer.json",
        },
    )


def weights_of(model):
    return load_file(locate(model_spec(str(model), {})).model / "model.safetensors")


def refusal(model, **options):
    with pytest.raises(ModelError) as refused:
        locate(model_spec(str(model), options))
    return str(refused.value)


# The reader


def test_reader_reads_what_the_onnx_package_reads(graphs):
    model, graph = onnx.load(graphs["xlmr_unigram"]), reader.read_graph(graphs["xlmr_unigram"])
    for expected, tensor in zip(model.graph.initializer, graph.initializers, strict=True):
        assert tensor.name == expected.name
        assert np.array_equal(tensor.array(), numpy_helper.to_array(expected))
    for expected, node in zip(model.graph.node, graph.nodes, strict=True):
        assert (node.name, node.operator) == (expected.name, expected.op_type)
        assert node.inputs == tuple(expected.input)
        assert node.outputs == tuple(expected.output)
    assert graph.inputs == ("input_ids", "attention_mask")


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize(
    "kind", ["FLOAT", "FLOAT16", "DOUBLE", "INT64", "INT32", "INT8", "BOOL", "UINT8"]
)
def test_tensor_has_the_values_that_the_onnx_package_reads(tmp_path, kind, raw):
    dtype = getattr(TensorProto, kind)
    values = np.array([[0, 1, 1], [1, 0, 1]]).astype(helper.tensor_dtype_to_np_dtype(dtype))
    if kind not in ("BOOL", "UINT8"):
        values = values - values.dtype.type(2)
    tensor = helper.make_tensor(
        "t", dtype, values.shape, values.tobytes() if raw else values.ravel().tolist(), raw=raw
    )
    graph = helper.make_graph([], "g", [], [], [tensor])
    onnx.save(helper.make_model(graph), tmp_path / "t.onnx")
    (found,) = reader.read_graph(tmp_path / "t.onnx").initializers
    assert found.array().dtype == values.dtype
    assert np.array_equal(found.array(), values)


# The weights


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_out_of_the_graph_are_the_checkpoints_bit_for_bit(graphs, models, shape, tmp_path):
    files = {
        "onnx/model.onnx": graphs[shape],
        "tokenizer.json": Path(models[shape], "tokenizer.json"),
    }
    found = weights_of(onnx_models.directory(tmp_path / "m", files))
    expected = load_file(Path(models[shape]) / "model.safetensors")
    assert set(expected) - set(found) == {"pooler.dense.weight", "pooler.dense.bias"}
    for name, values in found.items():
        assert values.dtype == np.float32
        assert np.array_equal(values, expected[name]), name


@pytest.mark.parametrize("engine", ["torch", "openvino"])
@pytest.mark.parametrize("shape", SHAPES)
def test_vectors_of_a_graph_are_the_checkpoints(graphs, models, shape, engine, tmp_path):
    tokenizer = Path(models[shape]) / "tokenizer.json"
    model = onnx_models.jar(
        tmp_path / "m.jar", {"e5.onnx": graphs[shape], "e5-tokenizer.json": tokenizer}
    )
    encoder = Encoder.load(str(model), engine=engine, device="cpu", threads=1, **RECIPE)
    expected = reference(models[shape], TEXTS, prompt="query: ")
    assert_close(encoder.encode(TEXTS, role="query"), expected, FP32_TOLERANCE)
