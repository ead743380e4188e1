"""The architectures as data agree with transformers, which runs them."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModel
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from e5spark.errors import ModelError
from e5spark.model import registry
from e5spark.model.architecture import ARCHITECTURES, read_config

TINY = {
    "vocab_size": 40,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_defaults_are_those_of_transformers(name):
    config = AutoConfig.for_model(name)
    defaults = ARCHITECTURES[name].defaults
    assert defaults == {key: getattr(config, key) for key in defaults}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tensors_are_those_of_transformers_without_the_pooler(name, tmp_path):
    sizes = {key: value for key, value in TINY.items() if key in ARCHITECTURES[name].defaults}
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(name, **sizes))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name, **sizes}))
    assert dict(read_config(tmp_path).tensors()) == {
        tensor: tuple(parameter.shape)
        for tensor, parameter in model.named_parameters()
        if not tensor.startswith("pooler.")
    }
    assert ARCHITECTURES[name].prefix == f"{model.base_model_prefix}."


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_tokenizer_class_is_the_one_of_transformers_where_it_has_one(name):
    expected = ARCHITECTURES[name].tokenizer
    assert expected is None or TOKENIZER_MAPPING_NAMES[name].removesuffix("Fast") == expected


def test_every_published_checkpoint_has_a_known_architecture():
    assert {entry.architecture for entry in registry.CHECKPOINTS.values()} <= set(ARCHITECTURES)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_size": "32"}, "has hidden_size '32'; it must be a whole number, 1 or more"),
        ({"num_attention_heads": 0}, "has num_attention_heads 0"),
        ({"max_position_embeddings": True}, "has max_position_embeddings True"),
        ({"model_type": ["bert"]}, r"holds a \['bert'\] model; e5spark runs bert, xlm-roberta"),
    ],
)
def test_a_config_with_a_size_that_is_no_number_is_refused(tmp_path, change, named):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **change}))
    with pytest.raises(ModelError, match=named):
        read_config(tmp_path)


def test_a_config_that_is_no_object_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"config\.json holds a JSON list; it needs a dict"):
        read_config(tmp_path)
