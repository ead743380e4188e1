"""ONNX models for tests: exports of tiny checkpoints, and files that are wrong in one way."""

import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from transformers import AutoModel


class _LastHiddenState(torch.nn.Module):
    """A model whose only output is the one that exports have."""

    def __init__(self, model: torch.nn.Module, prefix: str) -> None:
        super().__init__()
        self.prefix = prefix
        self.add_module(prefix, model)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        model = getattr(self, self.prefix)
        return model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def export(checkpoint: Path, to: Path, *, attention: str = "eager", dynamo: bool = False) -> Path:
    """The graph of a checkpoint, as torch exports it."""
    model = AutoModel.from_pretrained(checkpoint, attn_implementation=attention)
    wrapped = _LastHiddenState(model, "bert").eval()
    ids = torch.randint(5, 100, (2, 7), generator=torch.Generator().manual_seed(0))
    names, axes = ["input_ids", "attention_mask"], {0: "rows", 1: "tokens"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            wrapped,
            (ids, torch.ones_like(ids)),
            to,
            input_names=names,
            output_names=["last_hidden_state"],
            dynamo=dynamo,
            **(
                {"dynamic_shapes": [axes, axes]}
                if dynamo
                else {"dynamic_axes": dict.fromkeys(names, axes), "opset_version": 14}
            ),
        )
    return to


def altered(source: Path, to: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """A copy of an ONNX file with a change."""
    model = onnx.load(source)
    change(model)
    onnx.save(model, to)
    return to


def replace(model: onnx.ModelProto, name: str, change: Callable) -> None:
    """Changes the values of one initializer."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            array = change(numpy_helper.to_array(tensor).copy())
            tensor.CopyFrom(numpy_helper.from_array(array, name))
            return
    raise AssertionError(name)


def jar(to: Path, members: dict[str, Path | bytes]) -> Path:
    """A zip file of these members."""
    with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content if isinstance(content, bytes) else content.read_bytes())
    return to


def directory(to: Path, files: dict[str, Path]) -> Path:
    """A directory of copies of these files."""
    for name, source in files.items():
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, to / name)
    return to


def to_float16(model: onnx.ModelProto) -> None:
    """Rounds the weights; nodes that would convert them are left out."""
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def leave_out_head_size(model: onnx.ModelProto) -> None:
    """Reshapes queries, keys and values to heads of a size that the runtime computes."""
    makers = {node.output[0]: node for node in model.graph.node}
    for node in model.graph.node:
        if node.op_type == "Reshape" and "/attention/self/" in node.name:
            shape = makers[node.input[1]]
            shape = makers[shape.input[-1]] if shape.op_type == "Concat" else shape
            array = numpy_helper.to_array(shape.attribute[0].t).copy()
            array.flat[-1] = -1
            shape.attribute[0].t.CopyFrom(numpy_helper.from_array(array))


def drop_residual(model: onnx.ModelProto) -> None:
    """Lets the first layer add its feed-forward block to zeros in place of its input."""
    node = next(node for node in model.graph.node if node.name.endswith("layer.0/output/Add"))
    node.input[1] = node.input[0]


def _quantise(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    array = numpy_helper.to_array(tensor).astype(np.int8)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _quantise_at_run_time(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "MatMul")
    node.op_type = "MatMulInteger"


def _fuse(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Softmax")
    node.op_type, node.domain = "FusedMatMul", "com.microsoft"


def _rename(part: str, replacement: str) -> Callable[[onnx.ModelProto], None]:
    """Renames tensors, as a model of other modules names them."""

    def rename(model: onnx.ModelProto) -> None:
        names = [tensor.name for tensor in model.graph.initializer if part in tensor.name]
        assert names
        for tensor in model.graph.initializer:
            tensor.name = tensor.name.replace(part, replacement)
        for node in model.graph.node:
            node.name = node.name.replace(part.replace(".", "/"), replacement.replace(".", "/"))
            for position, name in enumerate(node.input):
                if name in names:
                    node.input[position] = name.replace(part, replacement)

    return rename


def _change_operator(before: str, after: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        next(node for node in model.graph.node if node.op_type == before).op_type = after

    return change


def _add_weight(model: onnx.ModelProto) -> None:
    bias = numpy_helper.from_array(np.ones((2, 3), np.float32), "bert.encoder.relative_bias.weight")
    model.graph.initializer.append(bias)


def _swap_biases(model: onnx.ModelProto) -> None:
    """Queries and keys exchange their biases, and so no scope fits its product."""
    names = [f"bert.encoder.layer.0.attention.self.{name}.bias" for name in ("query", "key")]
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if name in names:
                node.input[position] = names[1 - names.index(name)]


def _other_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "tokens"


def _other_shape(model: onnx.ModelProto) -> None:
    replace(model, "bert.encoder.layer.1.output.dense.bias", lambda values: values[:-1])


def _other_epsilon(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "Constant" and "layer.1/output/LayerNorm/Constant_1" in node.name:
            node.attribute[0].t.CopyFrom(numpy_helper.from_array(np.float32(1e-3)))
            return
    for node in model.graph.node:
        if node.op_type == "LayerNormalization":
            next(part for part in node.attribute if part.name == "epsilon").f = 1e-3
            return
    raise AssertionError("no LayerNorm")


def _double(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.name.endswith("position_embeddings.weight"):
            array = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


# Change to the function that makes it, and what the message says differs.
CHANGES: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "int8 weights": (_quantise, "is quantised (int8)"),
    "int8 products": (_quantise_at_run_time, "is quantised (MatMulInteger)"),
    "fused nodes": (_fuse, "was optimised for one runtime"),
    "no word embeddings": (_rename("word_embeddings", "tok"), "has no embeddings.word_embeddings"),
    "other layers": (_rename("encoder.layer", "transformer.layer"), "has no encoder.layer.0"),
    "ReLU": (_change_operator("Erf", "Relu"), "2 layers, but 1 GELUs"),
    "another attention": (_change_operator("Softmax", "Sigmoid"), "and 1 attentions"),
    "a weight too many": (_add_weight, "has a weight encoder.relative_bias.weight"),
    "swapped biases": (_swap_biases, "adds the bias of encoder.layer.0.attention.self.key"),
    "another input": (_other_input, "has the inputs tokens, attention_mask"),
    "another shape": (_other_shape, "has encoder.layer.1.output.dense.bias of shape (31,)"),
    "another epsilon": (_other_epsilon, "LayerNorms with the epsilons"),
    "double precision": (_double, "in float64"),
}
