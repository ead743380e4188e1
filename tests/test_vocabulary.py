"""A tokenizer of another model, or a damaged one, is refused on the driver; so is a tiny limit."""

import json

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from e5spark.errors import ModelError, OptionError
from e5spark.model import prompts, registry
from e5spark.model.architecture import read_config
from e5spark.model.registry import Recipe
from e5spark.model.vocabulary import check_prompts_fit, check_tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = ["query", "passage", ":", "a", "text"]


def wordpiece():
    pieces = {piece: number for number, piece in enumerate([*SPECIAL, *WORDS])}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return json.loads(tokenizer.to_str())


def unigram():
    pieces = [("<unk>", 0.0), ("▁query", -1.0), (":", -2.0)]
    return json.loads(tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0)).to_str())


@pytest.fixture
def save(tmp_path):
    """Writes config.json and tokenizer.json; returns the directory and what it holds."""

    def write(content, *, vocab_size=9, **config):
        config = {"model_type": "bert", "vocab_size": vocab_size, **config}
        (tmp_path / "config.json").write_text(json.dumps(config))
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "tokenizer.json").write_text(text)
        return tmp_path, read_config(tmp_path)

    return write


def refusal(directory, config, checkpoint=None):
    with pytest.raises(ModelError) as refused:
        check_tokenizer(directory, config, checkpoint)
    message = str(refused.value)
    assert f"{directory}/tokenizer.json" in message
    assert "Fetch the tokenizer of this checkpoint again" in message
    return message


def test_a_tokenizer_that_fits_the_model_passes(save):
    check_tokenizer(*save(wordpiece()), None)


def test_a_vocabulary_below_the_rows_of_the_embedding_passes(save):
    check_tokenizer(*save(wordpiece(), vocab_size=64), None)


def test_a_directory_without_tokenizer_json_is_left_to_transformers(save):
    directory, config = save(wordpiece())
    (directory / "tokenizer.json").unlink()
    check_tokenizer(directory, config, None)


@pytest.mark.parametrize(
    "content", ["<!DOCTYPE html>", "", "[]", "{}", '{"model": null}', '{"model": {"vocab": 3}}']
)
def test_a_file_that_is_no_tokenizer_is_refused(save, content):
    assert "is not a tokenizer" in refusal(*save(content))


def test_token_ids_beyond_the_embedding_are_refused_with_both_counts(save):
    message = refusal(*save(wordpiece(), vocab_size=8))
    assert "has token ids up to 8, but the model has embeddings of 8 tokens" in message


def test_an_added_token_beyond_the_embedding_is_refused(save):
    content = wordpiece()
    content["added_tokens"] = [{"id": 9, "content": "[NEW]"}]
    assert "has token ids up to 9" in refusal(*save(content))


def test_a_vocabulary_of_another_kind_is_refused(save):
    message = refusal(*save(unigram()))
    assert "holds a Unigram vocabulary, but BertTokenizer needs WordPiece" in message


@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
def test_the_files_may_name_another_class_of_tokenizer(save, file):
    directory, config = save(unigram())
    content = {**config.values, "tokenizer_class": "XLMRobertaTokenizerFast"}
    (directory / file).write_text(json.dumps(content))
    check_tokenizer(directory, config, None)


def test_a_published_checkpoint_has_the_kind_of_vocabulary_of_the_registry(save):
    checkpoint = registry.find("intfloat/multilingual-e5-small")
    message = refusal(*save(wordpiece(), vocab_size=checkpoint.vocab), checkpoint)
    assert f"holds a WordPiece vocabulary, but {checkpoint.name} needs Unigram" in message


@pytest.mark.parametrize("token", ["[UNK]", "[SEP]"])
def test_a_vocabulary_without_its_special_tokens_is_refused(save, token):
    content = wordpiece()
    del content["model"]["vocab"][token]
    assert f"has a vocabulary of 8 tokens without its special token '{token}'" in refusal(
        *save(content)
    )


# Room for a text


def room(directory, config, max_tokens, *, overlap=0, role_prompts=prompts.E5):
    recipe = Recipe(
        dim=8, pooling="mean", prompts=role_prompts, max_tokens=max_tokens, overlap=overlap
    )
    check_prompts_fit(directory, config, recipe)


@pytest.mark.parametrize("max_tokens", [1, 3, 4])
def test_a_limit_that_the_prompt_fills_is_refused(save, max_tokens):
    saved = save(wordpiece())
    with pytest.raises(OptionError) as refused:
        room(*saved, max_tokens)
    assert (
        f"max_tokens is {max_tokens}, but the prompt of role 'query' and the special tokens "
        in (str(refused.value))
    )
    assert "take 4; no room is left for a text" in str(refused.value)


def test_a_limit_with_room_for_one_token_passes(save):
    room(*save(wordpiece()), 5)


def test_the_overlap_of_windows_needs_room_too(save):
    with pytest.raises(OptionError, match="take 4 and twice the overlap 4; no room"):
        room(*save(wordpiece()), 8, overlap=2)
    room(*save(wordpiece()), 9, overlap=2)


def test_an_appended_end_of_sequence_token_counts(save):
    saved = save(wordpiece(), model_type="mistral")
    with pytest.raises(OptionError, match="take 5;"):
        room(*saved, 5)


def test_a_usual_limit_needs_no_tokenizer(save):
    room(*save("no tokenizer"), 512)
