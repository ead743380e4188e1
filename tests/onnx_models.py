"""ONNX models for tests: exports of tiny checkpoints, and files that are wrong in one way."""

import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

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
