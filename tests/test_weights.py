"""Broken weights are refused by their headers, on the driver, before any engine is loaded."""

import json
import math
import re

import pytest

from e5spark.errors import ModelError
from e5spark.model.architecture import read_config
from e5spark.model.weights import check_weights, read_entries

CONFIG = {
    "model_type": "bert",
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
}
WEIGHTS = "model.safetensors"
LOST = "encoder.layer.1.output.dense.weight"


def write_safetensors(path, shapes):
    """Write a safetensors file of zeros."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    content = json.dumps(header).encode()
    path.write_bytes(len(content).to_bytes(8, "little") + content + bytes(end))


@pytest.fixture
def config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return read_config(tmp_path)


@pytest.fixture
def shapes(config):
    """What the architecture needs, for a test to spoil."""
    return dict(config.tensors())


@pytest.fixture
def check(tmp_path, config):
    """Checks weights of these shapes."""

    def run(shapes):
        write_safetensors(tmp_path / WEIGHTS, shapes)
        check_weights(tmp_path, [WEIGHTS], config)

    return run


def test_complete_weights_pass(check, shapes):
    check(shapes)


def test_tensors_that_the_architecture_does_not_use_are_left_alone(check, shapes):
    check({**shapes, "pooler.dense.weight": (8, 8), "embeddings.position_ids": (1, 16)})


def test_weights_that_were_saved_with_a_head_pass(check, shapes):
    check({f"bert.{name}": shape for name, shape in shapes.items()})


def test_weights_with_the_old_names_of_layer_norms_pass(check, shapes):
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): shape
        for name, shape in shapes.items()
    }
    assert renamed != shapes
    check(renamed)


def test_weights_in_several_files_pass_together(tmp_path, config, shapes):
    names = list(shapes)
    for file, part in (("a.safetensors", names[::2]), ("b.safetensors", names[1::2])):
        write_safetensors(tmp_path / file, {name: shapes[name] for name in part})
    check_weights(tmp_path, ["a.safetensors", "b.safetensors"], config)
    with pytest.raises(ModelError, match=f"lacks {len(names[1::2])} weights"):
        check_weights(tmp_path, ["a.safetensors"], config)


def test_a_missing_tensor_is_named(check, shapes):
    del shapes[LOST]
    with pytest.raises(ModelError, match=f"lacks 1 weights of its architecture, {LOST}"):
        check(shapes)


def test_a_missing_layer_is_counted(check, shapes):
    first = {name: shape for name, shape in shapes.items() if "layer.1." not in name}
    with pytest.raises(ModelError, match="lacks 16 weights of its architecture, encoder"):
        check(first)


def test_a_wrong_shape_is_named_with_the_one_that_is_needed(check, shapes):
    shapes[LOST] = (8, 16)
    with pytest.raises(ModelError) as refused:
        check(shapes)
    assert f"{WEIGHTS} has {LOST} of shape (8, 16), but config.json needs (8, 12)" in str(
        refused.value
    )


# Damaged files


def refusal(path):
    with pytest.raises(ModelError) as refused:
        read_entries(path)
    assert str(path) in str(refused.value)
    assert "etch" in str(refused.value), "a remedy"
    return str(refused.value)


@pytest.mark.parametrize(
    "content", [b"", b"\x01\x00", b"\xff" * 8, b"<!DOCTYPE html><html></html>"]
)
def test_a_file_without_a_header_is_refused_with_its_size(tmp_path, content):
    path = tmp_path / WEIGHTS
    path.write_bytes(content)
    assert f"it has {len(content)} bytes and no complete header" in refusal(path)


def test_a_pointer_of_git_lfs_is_refused_with_the_command_that_fetches(tmp_path):
    path = tmp_path / WEIGHTS
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 133\n")
    assert f"is a Git LFS pointer (66 bytes), not the weights; run git lfs pull in {tmp_path}" in (
        refusal(path)
    )


@pytest.mark.parametrize("lost", [1, 100])
def test_a_truncated_file_is_refused_with_both_sizes(tmp_path, shapes, lost):
    path = tmp_path / WEIGHTS
    write_safetensors(path, shapes)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-lost])
    assert f"it has {size - lost} bytes and a header that describes {size}" in refusal(path)


@pytest.mark.parametrize(
    "header", [b"{", b"[]", b"\xff\xff", b'{"a": 1}', b'{"a": {"shape": [1]}}', b'{"a": {}}']
)
def test_a_header_that_cannot_be_read_is_refused(tmp_path, header):
    path = tmp_path / WEIGHTS
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert re.search("a header that cannot be read", refusal(path))
