import pytest

from e5spark.errors import ModelError
from e5spark.model import prompts, registry
from e5spark.model.registry import Shape

SMALL = Shape(layers=12, hidden=384, heads=12, ffn=1536)
BASE = Shape(layers=12, hidden=768, heads=12, ffn=3072)
LARGE = Shape(layers=24, hidden=1024, heads=16, ffn=4096)
MISTRAL = Shape(layers=32, hidden=4096, heads=32, ffn=14336)
XLMR = "xlm-roberta"

PUBLISHED = {
    "intfloat/multilingual-e5-large": (XLMR, LARGE, 250_002),
    "intfloat/multilingual-e5-large-instruct": (XLMR, LARGE, 250_002),
    "intfloat/multilingual-e5-base": (XLMR, BASE, 250_002),
    "intfloat/multilingual-e5-small": ("bert", SMALL, 250_037),
    "avditvs/multilingual-e5-small-distill-base": ("bert", SMALL, 250_037),
    "intfloat/e5-small-v2": ("bert", SMALL, 30_522),
    "intfloat/e5-base-v2": ("bert", BASE, 30_522),
    "intfloat/e5-large-v2": ("bert", LARGE, 30_522),
    "intfloat/e5-small": ("bert", SMALL, 30_522),
    "intfloat/e5-base": ("bert", BASE, 30_522),
    "intfloat/e5-large": ("bert", LARGE, 30_522),
    "intfloat/e5-mistral-7b-instruct": ("mistral", MISTRAL, 32_000),
}
REVISIONS = {
    "intfloat/e5-small-v2": "dca8b1a9dae0d4575df2bf423a5edb485a431236",
    "intfloat/e5-base-v2": "1c644c92ad3ba1efdad3f1451a637716616a20e8",
    "intfloat/e5-large-v2": "b322e09026e4ea05f42beadf4d661fb4e101d311",
    "intfloat/multilingual-e5-small": "fd1525a9fd15316a2d503bf26ab031a61d056e98",
    "intfloat/multilingual-e5-base": "d13f1b27baf31030b7fd040960d60d909913633f",
    "intfloat/multilingual-e5-large": "ab10c1a7f42e74530fe7ae5be82e6d4f11a719eb",
    "intfloat/multilingual-e5-large-instruct": "baa7be480a7de1539afce709c8f13f833a510e0a",
    "intfloat/e5-mistral-7b-instruct": "07163b72af1488142a360786df853f237b1a3ca1",
}
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def test_the_table_has_every_published_checkpoint_and_minilm():
    assert set(registry.CHECKPOINTS) == {*PUBLISHED, MINILM}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_checkpoint_has_its_published_architecture_sizes_and_revision(name):
    checkpoint = registry.find(name)
    assert (checkpoint.architecture, checkpoint.shape, checkpoint.vocab) == PUBLISHED[name]
    assert checkpoint.revision == REVISIONS.get(name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_checkpoint_has_its_published_recipe(name):
    recipe = registry.find(name).recipe
    mistral = name == "intfloat/e5-mistral-7b-instruct"
    assert recipe.dim == PUBLISHED[name][1].hidden
    assert recipe.prompts == (prompts.E5_INSTRUCT if "instruct" in name else prompts.E5)
    assert recipe.pooling == ("last" if mistral else "mean")
    assert recipe.max_tokens == (4096 if mistral else 512)
    assert recipe.normalize


def test_only_the_distilled_checkpoint_borrows_its_tokenizer():
    borrowed = {
        checkpoint.name: checkpoint.tokenizer
        for checkpoint in registry.CHECKPOINTS.values()
        if checkpoint.tokenizer
    }
    assert borrowed == {
        "avditvs/multilingual-e5-small-distill-base": "intfloat/multilingual-e5-small"
    }


def test_only_the_distilled_checkpoint_was_trained_for_shorter_vectors():
    trained = [
        checkpoint.name for checkpoint in registry.CHECKPOINTS.values() if checkpoint.matryoshka
    ]
    assert trained == ["avditvs/multilingual-e5-small-distill-base"]


def test_minilm_has_no_prompts_and_a_known_hash():
    minilm = registry.find(MINILM)
    assert minilm.recipe.prompts == prompts.NONE
    assert minilm.weights_sha256 == (
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    )


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("intfloat/multilingual-e5-smal", "intfloat/multilingual-e5-small"),
        ("multilingual-e5-large", "intfloat/multilingual-e5-large"),
        ("intfloat/e5-small-v3", "intfloat/e5-small-v2"),
    ],
)
def test_an_unknown_name_brings_the_nearest_one(typo, meant):
    with pytest.raises(ModelError, match=f"Did you mean {meant!r}"):
        registry.find(typo)


def test_a_name_far_from_all_brings_the_list_and_the_way_to_give_a_directory():
    with pytest.raises(ModelError) as unknown:
        registry.find("gpt")
    assert all(name in str(unknown.value) for name in registry.CHECKPOINTS)
    assert "'archive:name'" in str(unknown.value)
