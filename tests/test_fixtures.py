"""The premises that the other tests rest on: what the built checkpoints really are."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer

from tests.checkpoints import (
    TokenizerJson,
    bert_unigram,
    bert_wordpiece,
    preset_padding,
    sentence_transformers_layout,
    true_size,
    xlmr_unigram,
)
from tests.texts import SENTENCES, all_texts, mixed_texts

BUILDERS = (bert_wordpiece, xlmr_unigram, bert_unigram)
# Their characters are all known to the tokenizers, so that no two of them can look alike.
DISTINCT_TEXTS = SENTENCES["english"] + SENTENCES["russian"] + SENTENCES["korean"]


@pytest.fixture(scope="module", params=BUILDERS, ids=lambda build: build.__name__)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return request.param(tmp_path_factory.mktemp(request.param.__name__))


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert_unigram(tmp_path_factory.mktemp("multilingual"))


def test_texts_are_distinct_and_repeatable() -> None:
    texts = mixed_texts(500, seed=3)
    assert len(set(texts)) == 500
    assert texts == mixed_texts(500, seed=3)
    assert texts != mixed_texts(500, seed=4)


def test_texts_reach_both_ends_of_the_length_range(checkpoint: Path) -> None:
    tokenizer = _tokenizer(checkpoint)
    lengths = [len(tokenizer.encode(text).ids) for text in mixed_texts(200)]
    assert min(lengths) <= 8
    assert 1000 < max(lengths) < 4000
    assert 15 < np.median(lengths) < 80


def test_auto_tokenizer_and_tokenizer_json_agree(checkpoint: Path) -> None:
    slow, fast = AutoTokenizer.from_pretrained(checkpoint), _tokenizer(checkpoint)
    for text in all_texts() + mixed_texts(200):
        assert slow(text, verbose=False)["input_ids"] == fast.encode(text).ids


def test_same_seed_same_weights(tmp_path: Path) -> None:
    first, again, other = (
        (bert_wordpiece(tmp_path / name, seed=seed) / "model.safetensors").read_bytes()
        for name, seed in (("first", 5), ("again", 5), ("other", 6))
    )
    assert first == again != other


def test_different_texts_have_different_vectors(checkpoint: Path) -> None:
    vectors = _mean_pooled(checkpoint, DISTINCT_TEXTS)
    cosines = (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]
    assert cosines.max() < 0.98


def test_pooling_and_mask_matter(checkpoint: Path) -> None:
    masked = _mean_pooled(checkpoint, DISTINCT_TEXTS)
    assert np.abs(masked - _mean_pooled(checkpoint, DISTINCT_TEXTS, masked=False)).max() > 0.05


def test_wordpiece_ids_are_those_of_bert_base_uncased(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bert_wordpiece(tmp_path))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.convert_tokens_to_ids(special) == [0, 100, 101, 102, 103]
    assert tokenizer.tokenize("The LIBRARY") == tokenizer.tokenize("the library")


def test_unigram_ids_are_those_of_xlm_roberta(multilingual: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(multilingual)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    assert tokenizer.convert_tokens_to_ids(special) == [0, 1, 2, 3, len(tokenizer) - 1]
    assert tokenizer.pad_token_id == 1


@pytest.mark.parametrize("tokenizer_json", ["rebuilt", "converted"])
def test_unigram_normaliser_carries_the_charsmap(
    tokenizer_json: TokenizerJson, tmp_path: Path
) -> None:
    directory = bert_unigram(tmp_path, tokenizer_json=tokenizer_json)
    for tokenizer in (
        _tokenizer(directory),
        AutoTokenizer.from_pretrained(directory).backend_tokenizer,
    ):
        normalised = tokenizer.normalizer.normalize_str("\uff21\uff22\uff23 \ufb01")
        assert normalised == "ABC fi"


def test_transformers_replaces_a_converted_normaliser(tmp_path: Path) -> None:
    directory = xlmr_unigram(tmp_path, tokenizer_json="converted")
    text = "next\u0085line"
    assert (
        AutoTokenizer.from_pretrained(directory)(text)["input_ids"]
        != _tokenizer(directory).encode(text).ids
    )


def test_position_rows_and_pad_ids(multilingual: Path, tmp_path: Path) -> None:
    bert = json.loads((multilingual / "config.json").read_text())
    assert (bert["max_position_embeddings"], bert["pad_token_id"]) == (512, 0)
    xlmr = json.loads((xlmr_unigram(tmp_path) / "config.json").read_text())
    assert (xlmr["max_position_embeddings"], xlmr["pad_token_id"]) == (514, 1)
    assert xlmr["type_vocab_size"] == 1


def test_512_tokens_fit(checkpoint: Path) -> None:
    assert np.isfinite(_mean_pooled(checkpoint, ["word " * 600])).all()


def test_preset_padding_is_in_the_file(tmp_path: Path) -> None:
    directory = preset_padding(bert_wordpiece(tmp_path), tokens=40)
    tokenizer = _tokenizer(directory)
    assert {len(tokenizer.encode(text).ids) for text in ("short", "long " * 100)} == {40}


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_sentence_transformers_reads_the_layout(
    build: Callable[[Path], Path], pooling: str, tmp_path: Path
) -> None:
    directory = sentence_transformers_layout(
        build(tmp_path), pooling=pooling, max_tokens=64, prompts={"query": "query: "}
    )
    model = SentenceTransformer(str(directory), device="cpu")
    assert model.max_seq_length == 64
    assert model[1].pooling_mode == pooling
    prompted = model.encode(["word " * 100], prompt_name="query")
    np.testing.assert_allclose(prompted, model.encode(["query: " + "word " * 100]))
    np.testing.assert_allclose(np.linalg.norm(prompted), 1, rtol=1e-6)


def test_sentence_transformers_layout_without_normalisation(multilingual: Path) -> None:
    directory = sentence_transformers_layout(multilingual, normalize=False)
    vectors = SentenceTransformer(str(directory), device="cpu").encode(["word"])
    assert abs(np.linalg.norm(vectors) - 1) > 0.1


@pytest.mark.large
@pytest.mark.large_sample
def test_true_size_has_the_published_shape(tmp_path: Path) -> None:
    directory = true_size(tmp_path, "intfloat/multilingual-e5-small")
    model = AutoModel.from_pretrained(directory)
    assert model.embeddings.word_embeddings.weight.shape == (250037, 384)
    assert sum(parameter.numel() for parameter in model.parameters()) == 117_653_760


def _tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


def _mean_pooled(
    directory: Path, texts: list[str] | tuple[str, ...], *, masked: bool = True
) -> np.ndarray:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    batch = tokenizer(
        list(texts), padding=True, truncation=True, max_length=512, return_tensors="pt"
    )
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(directory).eval()(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1) if masked else torch.ones_like(hidden)
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(pooled).numpy()
