import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from e5spark.encoder import Encoder
from e5spark.encoder.encoder import normalized
from e5spark.errors import ModelError, OptionError, TextError
from tests.oracle import FP32_TOLERANCE, INVARIANCE_TOLERANCE, assert_close, reference
from tests.texts import all_texts, mixed_texts

SHAPES = ["bert_wordpiece", "xlmr_unigram", "bert_unigram"]
MIXED = tuple([*all_texts(), *mixed_texts(60)])
COMPANY = tuple(mixed_texts(16, seed=3, longest=700))
POISON = "a [MASK] that no engine takes"


@pytest.fixture(scope="session")
def encoder(encoders):
    """An encoder for tests that hold for every shape."""
    return encoders("bert_wordpiece")


@pytest.fixture(scope="session")
def alone(encoders):
    """The vector of each text of COMPANY when it is encoded alone."""
    return {
        shape: np.concatenate([encoders(shape).encode([text], role="passage") for text in COMPANY])
        for shape in SHAPES
    }


# The right vectors


@pytest.mark.parametrize("shape", SHAPES)
def test_vectors_equal_transformers(encoders, models, shape):
    actual = encoders(shape).encode(MIXED, role="passage")
    assert actual.dtype == np.float32
    assert_close(actual, reference(models[shape], MIXED, prompt="passage: "), FP32_TOLERANCE)


def test_a_query_gets_the_prompt_of_queries(encoder, models):
    actual = encoder.encode(COMPANY, role="query")
    expected = reference(models["bert_wordpiece"], COMPANY, prompt="query: ")
    assert_close(actual, expected, FP32_TOLERANCE)


def hidden_states(directory, text):
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModel.from_pretrained(directory).eval()
    with torch.inference_mode():
        batch = tokenizer([text], truncation=True, max_length=512, return_tensors="pt")
        return model(**batch).last_hidden_state[0].numpy()  # (tokens, hidden)


@pytest.mark.parametrize(
    ("pooling", "pool"),
    [
        ("mean", lambda hidden: hidden.mean(axis=0)),
        ("cls", lambda hidden: hidden[0]),
        ("last", lambda hidden: hidden[-1]),
    ],
    ids=["mean", "cls", "last"],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_pooling(encoders, models, shape, pooling, pool):
    actual = encoders(shape, pooling=pooling, normalize=False).encode(COMPANY, role="query")
    for text, vector in list(zip(COMPANY, actual, strict=True))[:6]:
        expected = pool(hidden_states(models[shape], "query: " + text))
        assert_close(vector, expected, FP32_TOLERANCE)


def test_vectors_have_unit_length(encoder):
    norms = np.linalg.norm(encoder.encode(COMPANY, role="passage").astype(np.float64), axis=1)
    assert_close(norms, np.ones(len(COMPANY)), INVARIANCE_TOLERANCE)


def test_without_normalisation_vectors_keep_their_length(encoders, encoder):
    raw = encoders("bert_wordpiece", normalize=False).encode(COMPANY, role="passage")
    norms = np.linalg.norm(raw, axis=1, keepdims=True)
    assert (np.abs(norms - 1) > 0.1).all()
    assert_close(raw / norms, encoder.encode(COMPANY, role="passage"), INVARIANCE_TOLERANCE)


def test_a_zero_vector_stays_zero():
    assert not normalized(np.zeros((2, 3), np.float32)).any()


def test_a_lower_token_limit_cuts_as_transformers_does(encoders, models):
    actual = encoders("xlmr_unigram", max_tokens=16).encode(MIXED, role="passage")
    expected = reference(models["xlmr_unigram"], MIXED, prompt="passage: ", max_tokens=16)
    assert_close(actual, expected, FP32_TOLERANCE)


def test_fewer_dimensions_are_the_first_ones_normalised_again(encoders, models):
    encoder = encoders("bert_wordpiece", dim=8, force_dim=True)
    cut = reference(models["bert_wordpiece"], COMPANY, prompt="passage: ")[:, :8]
    expected = cut / np.linalg.norm(cut, axis=1, keepdims=True)
    assert encoder.dim == 8
    assert_close(encoder.encode(COMPANY, role="passage"), expected, FP32_TOLERANCE)


def test_an_empty_text_is_the_prompt_alone(encoder, models):
    expected = reference(models["bert_wordpiece"], ("query:",), prompt="")
    assert_close(encoder.encode([""], role="query"), expected, FP32_TOLERANCE)


def test_a_lone_surrogate_is_encoded_as_the_replacement_character(encoder):
    actual = encoder.encode(["tea\ud800 and milk"], role="query")
    assert_close(actual, encoder.encode(["tea\ufffd and milk"], role="query"), 0)


def test_no_texts_have_no_vectors(encoder):
    assert encoder.encode([], role="query").shape == (0, encoder.dim)


# Batch invariance


@settings(max_examples=20)
@pytest.mark.parametrize("shape", SHAPES)
@given(
    picked=st.lists(st.integers(0, len(COMPANY) - 1), min_size=1, max_size=len(COMPANY)),
    token_budget=st.integers(1, 4000),
    window=st.integers(1, 20),
)
def test_a_text_has_the_same_vector_in_any_company_and_order(
    encoders, alone, shape, picked, token_budget, window
):
    encoder = encoders(shape, token_budget=token_budget, sort_window=window)
    actual = encoder.encode([COMPANY[row] for row in picked], role="passage")
    assert_close(actual, alone[shape][picked], INVARIANCE_TOLERANCE)


@pytest.mark.parametrize("company", ["a", "a much longer text " * 100], ids=["short", "long"])
@pytest.mark.parametrize("shape", SHAPES)
def test_padding_does_not_change_a_vector(encoders, alone, shape, company):
    encoder = encoders(shape, token_budget=1 << 20)
    actual = encoder.encode([company, *COMPANY, company], role="passage")
    assert_close(actual[1:-1], alone[shape], INVARIANCE_TOLERANCE)


# Texts that cannot be encoded


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [(None, "NoneType"), (3, "int"), (b"bytes", "bytes"), (float("nan"), "float")],
)
def test_a_value_that_is_no_string_is_refused_with_its_position(encoder, wrong, kind):
    with pytest.raises(TextError, match=rf"texts\[2\] is {kind}; encode takes strings only"):
        encoder.encode(["a", "b", wrong], role="query")


def test_a_single_string_is_refused(encoder):
    with pytest.raises(TextError, match="texts is a string"):
        encoder.encode("a text", role="query")


def test_an_unknown_role_is_refused(encoder):
    with pytest.raises(OptionError, match="Unknown role 'document'"):
        encoder.encode(["a"], role="document")


def test_an_instruction_that_the_checkpoint_does_not_take_is_refused(encoder):
    with pytest.raises(OptionError, match="takes none"):
        encoder.encode(["a"], role="query", instruction="Find duplicates")


@pytest.fixture
def poisoned(encoders, monkeypatch):
    """Makes encoders whose engine fails on any batch that holds the token of POISON."""

    def make(**options):
        encoder = encoders("bert_wordpiece", **options)
        engine, tokenizer = encoder._loaded.engine, encoder._loaded.tokenizer
        pool, (poison,) = (
            engine._forward,
            tokenizer._backend.encode("[MASK]", add_special_tokens=False).ids,
        )

        def fail(batch, pooling):
            if (batch.ids == poison).any():
                raise RuntimeError("the engine cannot take this")
            return pool(batch, pooling)

        monkeypatch.setattr(engine, "_forward", fail)
        return encoder

    return make


@pytest.mark.parametrize("window", [3, 4096])
def test_a_text_that_the_engine_cannot_take_is_named(poisoned, window):
    texts = [*COMPANY[:7], POISON, *COMPANY[7:]]
    with pytest.raises(TextError) as refused:
        poisoned(sort_window=window).encode(texts, role="query")
    assert "texts[7] could not be encoded: RuntimeError: the engine cannot take" in str(
        refused.value
    )


@pytest.mark.parametrize("positions", [[0], [9], [16], [3, 4, 12], list(range(17))])
def test_texts_that_the_engine_cannot_take_cost_the_others_nothing(poisoned, alone, positions):
    texts = list(COMPANY)
    for position in positions:
        texts.insert(position, POISON)
    actual = poisoned(token_budget=1 << 20).encode_rows(texts, ["passage: "] * len(texts))
    poison = [position for position, text in enumerate(texts) if text == POISON]
    assert actual.errors == dict.fromkeys(poison, "RuntimeError: the engine cannot take this")
    assert not actual.vectors[poison].any()
    others = np.delete(actual.vectors, poison, axis=0)
    assert_close(others, alone["bert_wordpiece"], INVARIANCE_TOLERANCE)


# Repeated texts


@pytest.fixture
def encoded(encoder, monkeypatch):
    """The token counts of all rows that the engine runs."""
    lengths, forward = [], encoder._loaded.engine._forward

    def count(batch, pooling):
        lengths.extend(batch.lengths.tolist())
        return forward(batch, pooling)

    monkeypatch.setattr(encoder._loaded.engine, "_forward", count)
    return lengths


def test_the_same_text_is_encoded_once_in_a_window(encoder, encoded):
    texts = [COMPANY[0], COMPANY[1], COMPANY[0], COMPANY[0], COMPANY[1]]
    actual = encoder.encode_rows(texts, ["query: "] * 5)
    assert len(encoded) == 2
    assert np.array_equal(actual.vectors, actual.vectors[[0, 1, 0, 0, 1]])
    assert actual.n_tokens.tolist() == actual.n_tokens[[0, 1, 0, 0, 1]].tolist()


def test_the_same_text_in_two_roles_is_two_texts(encoder, encoded):
    actual = encoder.encode_rows([COMPANY[0]] * 4, ["query: ", "passage: "] * 2)
    assert len(encoded) == 2
    assert not np.array_equal(actual.vectors[0], actual.vectors[1])
    assert np.array_equal(actual.vectors[:2], actual.vectors[2:])


@settings(deadline=None, max_examples=20)
@given(picked=st.lists(st.integers(0, len(COMPANY) - 1), min_size=1, max_size=40))
def test_texts_that_repeat_get_the_vectors_they_have_alone(encoder, alone, picked):
    actual = encoder.encode_rows([COMPANY[row] for row in picked], ["passage: "] * len(picked))
    assert_close(actual.vectors, alone["bert_wordpiece"][picked], INVARIANCE_TOLERANCE)


# Rows with their own prefixes


def test_rows_may_differ_in_their_prompts(encoder):
    prefixes = ["query: ", "passage: "] * (len(COMPANY) // 2)
    actual = encoder.encode_rows(COMPANY, prefixes).vectors
    for start, role in enumerate(("query", "passage")):
        expected = encoder.encode(COMPANY[start::2], role=role)
        assert_close(actual[start::2], expected, INVARIANCE_TOLERANCE)


def test_an_encoding_says_which_texts_lost_tokens(encoder):
    actual = encoder.encode_rows(["short", "long " * 2000], ["query: "] * 2)
    assert actual.truncated.tolist() == [False, True]
    assert actual.n_tokens[1] > 2000
    assert actual.errors == {}


# Loading


@pytest.fixture
def directory(model, tmp_path):
    """A copy of a checkpoint, for a test to damage."""
    return Path(shutil.copytree(model, tmp_path / "model"))


def change_weights(directory, change):
    path = directory / "model.safetensors"
    weights = change(safetensors.torch.load_file(path))
    safetensors.torch.save_file(weights, path, metadata={"format": "pt"})


def test_a_loaded_directory_gives_the_same_vectors(model, encoder):
    actual = Encoder.load(model).encode(COMPANY, role="passage")
    assert_close(actual, encoder.encode(COMPANY, role="passage"), INVARIANCE_TOLERANCE)


def test_weights_that_lack_a_tensor_are_refused_by_its_name(directory):
    lost = "encoder.layer.1.output.dense.weight"
    change_weights(directory, lambda weights: {k: v for k, v in weights.items() if k != lost})
    with pytest.raises(ModelError, match=f"lacks 1 weights of its architecture, {lost}"):
        Encoder.load(str(directory))


def test_a_checkpoint_without_pooler_is_complete(directory, encoder):
    change_weights(
        directory, lambda weights: {k: v for k, v in weights.items() if "pooler" not in k}
    )
    actual = Encoder.load(str(directory)).encode(COMPANY, role="passage")
    assert_close(actual, encoder.encode(COMPANY, role="passage"), INVARIANCE_TOLERANCE)


def test_weights_cut_short_are_refused(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="is not a complete safetensors file"):
        Encoder.load(str(directory))


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(model, device):
    with pytest.raises(OptionError, match=f"device is '{device}'"):
        Encoder.load(model, device=device)


@pytest.mark.parametrize(
    "options",
    [{"long_text": "split"}, {"output_type": "binary"}, {"output_type": "float16"}],
    ids=str,
)
def test_what_only_a_table_can_hold_is_refused(model, options):
    with pytest.raises(OptionError, match="An Encoder returns one float32 vector per text"):
        Encoder.load(model, **options)


def test_an_unknown_option_is_refused(model):
    with pytest.raises(OptionError, match="Unknown option 'batch_size'"):
        Encoder.load(model, batch_size=32)
