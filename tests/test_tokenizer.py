import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from e5spark.encoder.tokenizer import EXACT_CHARS, Tokenizer
from e5spark.errors import ModelError
from tests import checkpoints
from tests.texts import all_texts, mixed_texts

TEXTS = ["", " ", *all_texts(), *mixed_texts(200)]
KINDS = ["wordpiece", "unigram", "unigram of transformers 4", "preset padding"]


@pytest.fixture(scope="session")
def directories(models, tmp_path_factory):
    """The layouts in which published checkpoints keep their tokenizers."""
    directory = tmp_path_factory.mktemp("tokenizers")
    preset = Path(shutil.copytree(models["bert_wordpiece"], directory / "preset"))
    return {
        "wordpiece": Path(models["bert_wordpiece"]),
        "unigram": Path(models["xlmr_unigram"]),
        "unigram of transformers 4": checkpoints.bert_unigram(
            directory / "converted", tokenizer_json="converted"
        ),
        "preset padding": checkpoints.preset_padding(preset, tokens=32),
    }


@pytest.fixture(scope="session")
def both(directories):
    """Ours and transformers' own, by kind."""
    return {
        kind: (Tokenizer.load(directory), AutoTokenizer.from_pretrained(directory))
        for kind, directory in directories.items()
    }


def rows(tokens):
    """The ids of each text."""
    return [ids.tolist() for ids in np.split(tokens.ids, tokens.offsets[1:-1])]


@pytest.mark.parametrize("max_tokens", [3, 8, 64, 512])
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_transformers(both, kind, max_tokens):
    ours, theirs = both[kind]
    expected = theirs(TEXTS, truncation=True, max_length=max_tokens)["input_ids"]
    assert rows(ours.tokenize(TEXTS, max_tokens)) == expected


@settings(max_examples=200)
@pytest.mark.parametrize("kind", KINDS[:2])
@given(texts=st.lists(st.text(), min_size=1, max_size=5), max_tokens=st.integers(3, 20))
def test_ids_of_any_text_are_those_of_transformers(both, kind, texts, max_tokens):
    ours, theirs = both[kind]
    expected = theirs(texts, truncation=True, max_length=max_tokens)["input_ids"]
    assert rows(ours.tokenize(texts, max_tokens)) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_n_tokens_are_counted_before_truncation(both, kind):
    ours, theirs = both[kind]
    expected = [len(ids) for ids in theirs(TEXTS)["input_ids"]]
    assert ours.tokenize(TEXTS, 64).n_tokens.tolist() == expected


@pytest.mark.parametrize("kind", KINDS[:2])
def test_exactly_the_texts_that_lost_tokens_are_truncated(both, kind):
    ours, _ = both[kind]
    exact = ours.tokenize(TEXTS, 1 << 20).n_tokens
    max_tokens = int(np.sort(exact)[len(exact) // 2])
    tokens = ours.tokenize(TEXTS, max_tokens)
    assert (exact == max_tokens).any()
    assert tokens.truncated.tolist() == (exact > max_tokens).tolist()
    assert tokens.lengths.tolist() == np.minimum(exact, max_tokens).tolist()


@pytest.mark.parametrize("unit", ["many words ", "nospaces", "图书馆早上九点开门"])
@pytest.mark.parametrize("kind", KINDS[:2])
def test_a_text_too_long_to_read_whole_has_the_ids_of_transformers(both, kind, unit):
    ours, theirs = both[kind]
    text = unit * (2 * EXACT_CHARS // len(unit))
    tokens = ours.tokenize([text, "short"], 512)
    expected = theirs([text, "short"], truncation=True, max_length=512)["input_ids"]
    assert rows(tokens) == expected


@pytest.mark.parametrize("kind", KINDS[:2])
def test_the_tokens_of_a_text_too_long_to_read_whole_are_estimated(both, kind):
    ours, theirs = both[kind]
    text = "The library opens at nine. " * (3 * EXACT_CHARS // 27)
    tokens = ours.tokenize([text], 512)
    exact = len(theirs(text)["input_ids"])
    assert tokens.truncated.all()
    assert tokens.n_tokens[0] == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_padded_rows_are_filled_up_on_the_right_with_the_pad_id(both, kind):
    ours, theirs = both[kind]
    tokens = ours.tokenize(TEXTS[:20], 64)
    order = np.array([7, 0, 19, 3])
    padded = tokens.batch(order).padded(ours.pad_id)
    encoded = theirs([TEXTS[row] for row in order], truncation=True, max_length=64)
    assert padded.tolist() == theirs.pad(encoded, padding="longest")["input_ids"]
    assert padded.dtype == np.int64


@pytest.mark.parametrize(("kind", "pad_id"), [("wordpiece", 0), ("unigram", 1)])
def test_the_pad_id_comes_from_the_tokenizer(both, kind, pad_id):
    assert both[kind][0].pad_id == pad_id


@pytest.mark.parametrize("kind", KINDS[:2])
def test_special_tokens_are_counted(both, kind):
    assert both[kind][0].special_tokens == 2


def test_no_texts_have_no_tokens(both):
    tokens = both["wordpiece"][0].tokenize([], 512)
    assert len(tokens.ids) == len(tokens.n_tokens) == len(tokens.lengths) == 0


def test_a_directory_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ModelError, match="has no tokenizer that can be read"):
        Tokenizer.load(tmp_path)
