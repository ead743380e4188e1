"""resolve() is the one way to a model: what is broken is refused on the driver, before any task."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest

from e5spark.errors import ModelError, OptionError
from e5spark.model import registry
from e5spark.model.checkpoint import earlier_hashes, locate
from e5spark.model.resolve import (
    make_plan,
    resolve,
    resolve_files,
    resolve_planned,
    with_stored_identity,
)
from e5spark.model.spec import model_spec

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture
def directory(model, tmp_path):
    """A checkpoint that a test may spoil."""
    return Path(shutil.copytree(model, tmp_path / "model"))


def resolved(directory, **options):
    return resolve(model_spec(str(directory), options))


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_resolved_model_has_files_recipe_and_a_decided_precision(directory):
    model = resolved(directory)
    assert model.files.model == model.files.tokenizer == directory
    assert (model.recipe.dim, model.spec.precision) == (32, "fp32")
    assert len(model.weights.weights) == 64


def test_a_plan_is_what_resolve_says(directory):
    spec = model_spec(str(directory), {})
    model, plan = resolve(spec), make_plan(spec, spec)
    assert (plan.spec, plan.recipe, plan.weights) == (model.spec, model.recipe, model.weights)


def empty(directory):
    (directory / "model.safetensors").write_bytes(b"")


def truncated(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pointer(directory):
    (directory / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")


def more_layers(directory):
    change_config(directory, num_hidden_layers=3)


def wider(directory):
    change_config(directory, intermediate_size=128)


def html(directory):
    (directory / "tokenizer.json").write_text("<!DOCTYPE html>")


def smaller(directory):
    change_config(directory, vocab_size=100)


def change_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


BROKEN = {
    empty: "model.safetensors is not a complete safetensors file: it has 0 bytes",
    truncated: "model.safetensors is not a complete safetensors file",
    pointer: "model.safetensors is a Git LFS pointer",
    more_layers: "lacks 16 weights of its architecture, encoder.layer.2",
    wider: "has encoder.layer.0.intermediate.dense.weight of shape",
    smaller: "has embeddings.word_embeddings.weight of shape",
    html: "tokenizer.json is not a tokenizer",
}


@pytest.mark.parametrize("spoil", BROKEN)
def test_a_broken_checkpoint_is_refused_before_any_task(directory, spoil):
    spoil(directory)
    spec = model_spec(str(directory), {})
    for refused in (resolve, resolve_files, lambda spec: make_plan(spec, spec)):
        with pytest.raises(ModelError, match=BROKEN[spoil]):
            refused(spec)


def test_the_tokenizer_of_another_model_is_refused(directory, models):
    with pytest.raises(ModelError, match="belongs to another model"):
        resolved(
            directory,
            tokenizer=str(mislabelled_tokenizer(models["xlmr_unigram"], directory.parent)),
        )


def mislabelled_tokenizer(directory, to):
    """The vocabulary of a checkpoint under the name of another class."""
    (to / "tokenizer").mkdir()
    shutil.copy(Path(directory) / "tokenizer.json", to / "tokenizer")
    shutil.copy(Path(directory) / "config.json", to / "tokenizer")
    config = {"tokenizer_class": "BertTokenizer"}
    (to / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    return to / "tokenizer"


def test_altered_weights_of_a_published_checkpoint_are_refused(directory, monkeypatch):
    weights = directory / "model.safetensors"
    checkpoint = dataclasses.replace(
        registry.find(MINILM), weights_sha256=hashlib.sha256(weights.read_bytes()).hexdigest()
    )
    monkeypatch.setitem(registry.CHECKPOINTS, MINILM, checkpoint)
    with pytest.raises(ModelError, match="does not hold"):  # the weights pass, the config does not
        resolved(directory, checkpoint=MINILM)
    flip_a_byte(weights)
    with pytest.raises(ModelError, match="was published with"):
        resolved(directory, checkpoint=MINILM)


def test_max_tokens_without_room_for_a_text_is_refused_before_any_task(directory):
    with pytest.raises(OptionError, match="max_tokens is 3, but the prompt of role 'query'"):
        resolved(directory, max_tokens=3)


def test_an_executor_with_other_files_than_the_driver_s_is_refused(directory, model):
    spec = model_spec(model, {})
    plan = make_plan(spec, spec)
    local = model_spec(str(directory), {"precision": "fp32"})
    assert resolve_planned(plan, local).files.model == directory
    flip_a_byte(directory / "model.safetensors")
    with pytest.raises(ModelError, match="is not the one that the driver planned with"):
        resolve_planned(plan, local)


def test_plan_under_the_identity_of_an_earlier_release_is_the_same_model(directory, model):
    spec = model_spec(model, {})
    plan = make_plan(spec, spec)
    earlier = earlier_hashes(locate(spec))
    stored = with_stored_identity(plan, spec, earlier)
    assert (stored.weights, stored.spec, stored.recipe) == (earlier, plan.spec, plan.recipe)
    local = model_spec(str(directory), {"precision": "fp32"})
    assert resolve_planned(stored, local).files.model == directory
    flip_a_byte(directory / "model.safetensors")
    with pytest.raises(ModelError, match="is not the one that the driver planned with"):
        resolve_planned(stored, local)


def test_plan_keeps_its_identity_for_a_table_of_another_model(model):
    spec = model_spec(model, {})
    plan = make_plan(spec, spec)
    other = dataclasses.replace(earlier_hashes(locate(spec)), tokenizer="0" * 64)
    assert with_stored_identity(plan, spec, other) == plan


def test_an_executor_with_another_recipe_than_the_driver_s_is_refused(directory, model):
    spec = model_spec(model, {})
    plan = make_plan(spec, spec)
    pooling = directory / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"pooling_mode": "cls"}))
    with pytest.raises(ModelError, match="is not the one that the driver planned with"):
        resolve_planned(plan, model_spec(str(directory), {"precision": "fp32"}))


def test_an_executor_checks_the_content_that_no_driver_could(directory):
    name = "intfloat/e5-small-v2"
    spec = model_spec(name, {})
    plan = make_plan(spec, spec)
    assert plan.weights is None
    truncated(directory)
    with pytest.raises(ModelError, match="is not a complete safetensors file"):
        resolve_planned(plan, model_spec(str(directory), {"precision": "fp32"}))
