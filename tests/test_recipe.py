import dataclasses
import json
import re

import pytest

from e5spark.errors import ModelError, OptionError
from e5spark.model import prompts, registry
from e5spark.model.recipe import resolve_recipe
from e5spark.model.registry import Recipe
from e5spark.model.spec import model_spec

CONFIG = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "max_position_embeddings": 512,
}
SMALL_CONFIG = {
    **CONFIG,
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
}
MULTILINGUAL_SMALL = {**SMALL_CONFIG, "vocab_size": 250_037}
XLMR_BASE = {
    **MULTILINGUAL_SMALL,
    "model_type": "xlm-roberta",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "vocab_size": 250_002,
    "max_position_embeddings": 514,
    "layer_norm_eps": 1e-5,
    "type_vocab_size": 1,
}
OWN = {"query": "q: ", "passage": "p: "}
OPTIONS = {"pooling": "mean", "normalize": True, "prompts": OWN}
SMALL = "intfloat/multilingual-e5-small"
DISTILLED = "avditvs/multilingual-e5-small-distill-base"


@pytest.fixture
def plain(tmp_path):
    """Makes a directory with these files and contents; no weights."""

    def make(config=CONFIG, files=()):
        for name, content in {"config.json": config, **dict(files)}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))
        return tmp_path

    return make


@pytest.fixture
def layout(plain):
    """Makes a directory in the layout of sentence-transformers."""

    def make(
        kinds=("Transformer", "Pooling", "Normalize"),
        pooling=None,
        own_prompts=OWN,
        max_tokens=None,
        config=CONFIG,
    ):
        files = {
            "modules.json": [
                {
                    "path": f"{index}_{kind}" if index else "",
                    "type": f"sentence_transformers.{kind}",
                }
                for index, kind in enumerate(kinds)
            ],
            "1_Pooling/config.json": pooling or {"pooling_mode_mean_tokens": True},
            "config_sentence_transformers.json": {"prompts": own_prompts},
        }
        if max_tokens is not None:
            files["sentence_bert_config.json"] = {"max_seq_length": max_tokens}
        return plain(config, files)

    return make


def recipe_of(directory, **options):
    return resolve_recipe(model_spec(str(directory), options), directory)


# What a checkpoint's own files say


def test_a_sentence_transformers_directory_says_all(layout):
    assert recipe_of(layout(max_tokens=256)) == Recipe(
        dim=32, pooling="mean", prompts=OWN, max_tokens=256, normalize=True
    )


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": ["mean"]}, "mean"),
    ],
    ids=str,
)
def test_pooling_is_read_in_the_old_and_the_new_format(layout, pooling, expected):
    assert recipe_of(layout(pooling=pooling)).pooling == expected


@pytest.mark.parametrize(
    ("pooling", "named"),
    [
        ({"pooling_mode_max_tokens": True}, "max_tokens"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "mean+cls"),
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
        ({"pooling_mode": ["cls", "max"]}, "cls+max"),
    ],
    ids=str,
)
def test_another_pooling_is_refused_by_name(layout, pooling, named):
    with pytest.raises(ModelError, match=f"Pooling '{re.escape(named)}' is not supported"):
        recipe_of(layout(pooling=pooling))


def test_pooling_that_leaves_the_prompt_out_is_refused(layout):
    with pytest.raises(ModelError, match="leaves the prompt out"):
        recipe_of(layout(pooling={"pooling_mode": "mean", "include_prompt": False}))


@pytest.mark.parametrize(
    ("kinds", "normalize"),
    [(("Transformer", "Pooling", "Normalize"), True), (("Transformer", "Pooling"), False)],
)
def test_vectors_are_normalised_where_the_modules_say_so(layout, kinds, normalize):
    assert recipe_of(layout(kinds=kinds)).normalize is normalize


@pytest.mark.parametrize("name", ["passage", "document", "corpus"])
def test_the_prompt_of_passages_has_several_names(layout, name):
    assert recipe_of(layout(own_prompts={"query": "q: ", name: "p: "})).prompts == OWN


@pytest.mark.parametrize("own", [{}, {"query": "q: "}, {"passage": "p: "}, None], ids=str)
def test_prompts_that_lack_a_role_are_refused_with_the_option_to_set(layout, own):
    with pytest.raises(ModelError, match="prompts="):
        recipe_of(layout(own_prompts=own))


def test_another_module_is_refused_by_name(layout):
    with pytest.raises(ModelError, match="has a Dense module, which e5spark does not run"):
        recipe_of(layout(kinds=("Transformer", "Pooling", "Dense", "Normalize")))


def test_a_plain_directory_is_refused_with_what_to_give(plain):
    with pytest.raises(ModelError) as refused:
        recipe_of(plain())
    for needed in ("pooling='mean'", "normalize=True", "prompts={'query'", "checkpoint='intfloat/"):
        assert needed in str(refused.value)


def test_a_refusal_names_only_the_options_that_are_missing(layout):
    with pytest.raises(ModelError) as refused:
        recipe_of(layout(own_prompts=None))
    assert "prompts={'query'" in str(refused.value)
    assert "pooling='mean'" not in str(refused.value)
    assert "normalize=True" not in str(refused.value)


def test_a_plain_directory_works_with_the_user_s_options(plain):
    assert recipe_of(plain(), **OPTIONS) == Recipe(
        dim=32, pooling="mean", prompts=OWN, max_tokens=512, normalize=True
    )


def test_options_of_the_user_override_the_files(layout):
    own = {"query": "", "passage": ""}
    recipe = recipe_of(layout(), pooling="cls", normalize=False, prompts=own, max_tokens=64)
    assert recipe == Recipe(dim=32, pooling="cls", prompts=own, max_tokens=64, normalize=False)


def test_a_config_that_is_no_json_is_refused_by_its_path(plain):
    directory = plain()
    (directory / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json is not valid JSON"):
        recipe_of(directory, **OPTIONS)


# Token limits


def test_xlm_r_counts_positions_from_two_so_514_rows_serve_512_tokens(plain):
    config = {**CONFIG, "model_type": "xlm-roberta", "max_position_embeddings": 514}
    assert recipe_of(plain(config), **OPTIONS).max_tokens == 512


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 512),
        ({"sentence_bert_config.json": {"max_seq_length": 128}}, 128),
        ({"sentence_bert_config.json": {"max_seq_length": None}}, 512),
        ({"sentence_bert_config.json": {"max_seq_length": 8192}}, 512),
        ({"tokenizer_config.json": {"model_max_length": 256}}, 256),
        ({"tokenizer_config.json": {"model_max_length": 10**30}}, 512),
    ],
    ids=str,
)
def test_the_token_limit_is_the_lowest_that_is_declared(plain, files, expected):
    assert recipe_of(plain(files=files), **OPTIONS).max_tokens == expected


@pytest.mark.parametrize("max_tokens", [64, 128])
def test_the_user_may_lower_the_token_limit(layout, max_tokens):
    assert recipe_of(layout(max_tokens=128), max_tokens=max_tokens).max_tokens == max_tokens


def test_a_token_limit_above_the_checkpoint_s_is_refused(layout):
    with pytest.raises(OptionError, match=r"max_tokens is 129, but .* takes at most 128 tokens"):
        recipe_of(layout(max_tokens=128), max_tokens=129)


@pytest.mark.parametrize("kind", ["gpt2", "t5", None])
def test_an_architecture_that_e5spark_does_not_run_is_refused(plain, kind):
    with pytest.raises(ModelError, match=f"holds a {kind!r} model; e5spark runs bert, xlm-roberta"):
        recipe_of(plain({**CONFIG, "model_type": kind}), **OPTIONS)


# Known checkpoints


def test_checkpoint_fills_in_what_a_plain_directory_does_not_say(plain):
    recipe = recipe_of(plain(MULTILINGUAL_SMALL), checkpoint=SMALL)
    assert recipe == registry.find(SMALL).recipe


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_size": 768}, "hidden_size 768 (not 384)"),
        ({"num_hidden_layers": 6}, "num_hidden_layers 6 (not 12)"),
        ({"model_type": "xlm-roberta"}, "model_type 'xlm-roberta' (not 'bert')"),
        ({"num_attention_heads": 6}, "num_attention_heads 6 (not 12)"),
        ({"intermediate_size": 768}, "intermediate_size 768 (not 1536)"),
        ({"hidden_act": "relu"}, "hidden_act 'relu' (not 'gelu')"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps 1e-05 (not 1e-12)"),
        ({"max_position_embeddings": 514}, "max_position_embeddings 514 (not 512)"),
        ({"type_vocab_size": 1}, "type_vocab_size 1 (not 2)"),
        ({"vocab_size": 30_522}, "vocab_size 30522 (not 250037)"),
    ],
)
def test_a_config_with_other_values_than_the_checkpoint_s_is_refused(plain, change, named):
    directory = plain({**MULTILINGUAL_SMALL, **change})
    with pytest.raises(ModelError) as refused:
        recipe_of(directory, checkpoint=SMALL)
    assert f"does not hold {SMALL}: its config.json has {named}" in str(refused.value)


def test_the_files_of_e5_small_v2_are_not_multilingual_e5_small(plain):
    directory = plain({**SMALL_CONFIG, "vocab_size": 30_522})
    assert recipe_of(directory, checkpoint="intfloat/e5-small-v2").dim == 384
    with pytest.raises(ModelError, match=r"does not hold .* vocab_size 30522 \(not 250037\)"):
        recipe_of(directory, checkpoint=SMALL)


def test_a_multilingual_checkpoint_has_the_epsilon_and_types_of_xlm_r(plain):
    name = "intfloat/multilingual-e5-base"
    assert recipe_of(plain(XLMR_BASE), checkpoint=name).max_tokens == 512
    with pytest.raises(ModelError, match=r"layer_norm_eps 1e-12 \(not 1e-05\)"):
        recipe_of(plain({**XLMR_BASE, "layer_norm_eps": 1e-12}), checkpoint=name)


def test_keys_that_a_config_leaves_out_have_the_defaults_of_transformers(plain):
    left_out = ("num_attention_heads", "hidden_act", "layer_norm_eps", "type_vocab_size")
    config = {key: value for key, value in MULTILINGUAL_SMALL.items() if key not in left_out}
    assert recipe_of(plain(config), checkpoint=SMALL) == registry.find(SMALL).recipe
    with pytest.raises(ModelError, match=r"intermediate_size 3072 \(not 1536\)"):
        recipe_of(plain({**config, "intermediate_size": 3072}), checkpoint=SMALL)


def test_an_unknown_checkpoint_is_refused_with_the_nearest(plain):
    with pytest.raises(ModelError, match=f"Did you mean '{SMALL}'"):
        recipe_of(plain(), checkpoint="multilingual-e5-small")


@pytest.mark.parametrize("name", registry.CHECKPOINTS)
def test_a_known_checkpoint_needs_no_files_to_be_described(name):
    assert resolve_recipe(model_spec(name, {})) == registry.find(name).recipe


def test_options_of_the_user_override_the_registry():
    spec = model_spec(SMALL, {"prompts": prompts.NONE, "normalize": False, "max_tokens": 100})
    expected = dataclasses.replace(
        registry.find(SMALL).recipe, prompts=prompts.NONE, normalize=False, max_tokens=100
    )
    assert resolve_recipe(spec) == expected


def test_an_unknown_name_without_files_is_refused():
    with pytest.raises(ModelError, match="is not on this machine, and e5spark does not know it"):
        resolve_recipe(model_spec("someone/e5-of-mine", {"revision": "a" * 40}))


# Fewer dimensions


@pytest.mark.parametrize("dim", [1, 192, 384])
def test_any_lower_dim_can_be_forced(dim):
    assert resolve_recipe(model_spec(SMALL, {"dim": dim, "force_dim": True})).dim == dim


def test_a_dim_that_was_not_trained_is_refused():
    with pytest.raises(OptionError, match="was not trained for shorter vectors"):
        resolve_recipe(model_spec(SMALL, {"dim": 192}))


def test_a_matryoshka_checkpoint_without_published_dims_offers_its_halvings():
    with pytest.raises(OptionError, match=r"192, 96, 48.* untested by them"):
        resolve_recipe(model_spec(DISTILLED, {"dim": 192}))
    assert resolve_recipe(model_spec(DISTILLED, {"dim": 192, "force_dim": True})).dim == 192


@pytest.mark.parametrize("options", [{"dim": 385}, {"dim": 385, "force_dim": True}])
def test_a_dim_above_the_checkpoint_s_is_refused(options):
    with pytest.raises(OptionError, match=r"dim is 385, but .* has 384 dimensions"):
        resolve_recipe(model_spec(SMALL, options))
