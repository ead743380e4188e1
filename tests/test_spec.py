"""Values of the wrong type are refused by name, as values that are wrong for every checkpoint."""

from pathlib import Path

import pytest

from e5spark.errors import OptionError
from e5spark.model.engines import ENGINES
from e5spark.model.spec import model_spec

WRONG = [
    ("checkpoint", 5, "checkpoint is 5; it must be a string."),
    ("checkpoint", ["a"], "it must be a string."),
    ("tokenizer", 3, "tokenizer is 3; it must be a string."),
    ("tokenizer", Path("x"), "it must be a string."),
    ("revision", 7, "revision is 7; it must be a string."),
    ("calibration", {}, "it must be a string."),
    ("device", 0, "device is 0; it must be a string."),
    ("device", None, "device is None; it must be a string."),
    ("device", "gpu", "device is 'gpu'; use auto, cpu, cuda or cuda:N."),
    ("prompts", ["query: "], "it must map 'passage' and 'query' to their prefixes."),
    ("prompts", "query: ", "it must map 'passage' and 'query' to their prefixes."),
    ("prompts", {"query": "q"}, "it needs 'passage' and 'query'"),
    ("prompts", {"query": "q", 1: "p"}, "it needs 'passage' and 'query'"),
    ("prompts", {"query": "q", "passage": None}, "prompts has None for 'passage'"),
    ("pooling", 3, "pooling is 3; it must be one of mean, cls, last."),
    ("pooling", ["mean"], "it must be one of mean, cls, last."),
    ("engine", 1, f"it must be one of auto, {', '.join(ENGINES)}."),
    ("precision", None, "precision is None; it must be one of auto, fp32, bf16, int8."),
    ("long_text", None, "it must be one of"),
    ("already_prompted", None, "it must be one of"),
    ("output_type", None, "it must be one of"),
    ("engine", None, "it must be one of"),
    ("max_tokens", "512", "max_tokens is '512'; it must be a positive whole number."),
    ("max_tokens", 1.5, "it must be a positive whole number."),
    ("dim", True, "dim is True; it must be a positive whole number."),
    ("token_budget", [], "it must be a positive whole number."),
    ("sort_window", None, "sort_window is None; it must be a positive whole number."),
    ("max_characters", 0, "max_characters is 0; it must be a positive whole number."),
    ("text_deadline", 0, "text_deadline is 0; it must be a number of seconds, more than 0."),
    ("text_deadline", True, "it must be a number of seconds"),
    ("text_deadline", "9", "it must be a number of seconds"),
    ("overlap", None, "overlap is None; it must be a whole number, 0 or more."),
    ("normalize", "yes", "normalize is 'yes'; it must be true or false."),
    ("normalize", 1, "normalize is 1; it must be true or false."),
    ("download", None, "download is None; it must be true or false."),
    ("force_dim", 0, "force_dim is 0; it must be true or false."),
    ("model", "x", "Unknown option 'model'"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_a_value_of_the_wrong_type_is_an_option_error(name, value, message):
    with pytest.raises(OptionError) as refused:
        model_spec("/models/e5", {name: value})
    assert message in str(refused.value)


@pytest.mark.parametrize("model", [None, 5, b"x", ["x"], Path("/models/e5")])
def test_a_model_of_the_wrong_type_is_an_option_error(model):
    with pytest.raises(OptionError, match=r"model is .*; it must be a string"):
        model_spec(model, {})


@pytest.mark.parametrize("model", ["", "  "])
def test_an_empty_model_is_an_option_error(model):
    with pytest.raises(OptionError, match="The model is empty"):
        model_spec(model, {})


def test_a_home_directory_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    spec = model_spec("~/e5", {"tokenizer": "~/tokenizer"})
    assert (spec.model, spec.tokenizer) == ("/home/somebody/e5", "/home/somebody/tokenizer")


def test_a_relative_directory_becomes_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert model_spec("./e5", {}).model == str(tmp_path / "e5")
