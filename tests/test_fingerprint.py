import dataclasses

import pytest

from e5spark.model.fingerprint import Fingerprint
from e5spark.model.registry import Recipe

RECIPE = Recipe(
    dim=384, pooling="mean", prompts={"query": "query: ", "passage": "passage: "}, max_tokens=512
)
FINGERPRINT = Fingerprint(weights="a" * 64, tokenizer="b" * 64, recipe=RECIPE, precision="fp32")

OTHER_PARTS = {
    "weights": "c" * 64,
    "tokenizer": "c" * 64,
    "recipe": dataclasses.replace(RECIPE, dim=192),
    "precision": "bf16",
    "output_type": "int8",
    "calibration": "d" * 64,
    "text_version": FINGERPRINT.text_version + 1,
}
OTHER_RECIPE_PARTS = {
    "dim": 768,
    "pooling": "cls",
    "prompts": {"query": "query: ", "passage": ""},
    "max_tokens": 256,
    "normalize": False,
    "long_text": "mean",
    "overlap": 64,
    "already_prompted": "keep",
}


def test_the_digest_is_the_same_in_every_process_and_release():
    assert FINGERPRINT.digest == "c7eb72d963ed15328e22a29b61f81eed067ba75e6164a407719c55313a6e7a88"


def test_every_part_has_another_value_in_these_tests():
    assert set(OTHER_PARTS) == {field.name for field in dataclasses.fields(Fingerprint)}
    assert set(OTHER_RECIPE_PARTS) == {field.name for field in dataclasses.fields(Recipe)}


@pytest.mark.parametrize("part", OTHER_PARTS)
def test_each_part_changes_the_digest(part):
    other = dataclasses.replace(FINGERPRINT, **{part: OTHER_PARTS[part]})
    assert other.digest != FINGERPRINT.digest


@pytest.mark.parametrize("part", OTHER_RECIPE_PARTS)
def test_each_part_of_the_recipe_changes_the_digest(part):
    recipe = dataclasses.replace(RECIPE, **{part: OTHER_RECIPE_PARTS[part]})
    assert dataclasses.replace(FINGERPRINT, recipe=recipe).digest != FINGERPRINT.digest


def test_the_order_of_the_prompts_does_not_change_the_digest():
    recipe = dataclasses.replace(RECIPE, prompts=dict(reversed(RECIPE.prompts.items())))
    assert dataclasses.replace(FINGERPRINT, recipe=recipe).digest == FINGERPRINT.digest


def test_weights_and_tokenizer_are_not_interchangeable():
    swapped = dataclasses.replace(FINGERPRINT, weights="b" * 64, tokenizer="a" * 64)
    assert swapped.digest != FINGERPRINT.digest
