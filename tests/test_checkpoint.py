import dataclasses
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import transformers

from e5spark.errors import ModelError
from e5spark.model import checkpoint, registry
from e5spark.model.spec import model_spec

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture
def directory(model, tmp_path):
    """A checkpoint that a test may spoil."""
    return Path(shutil.copytree(model, tmp_path / "model"))


def locate(directory, **options):
    return checkpoint.locate(model_spec(str(directory), options))


def refusal(directory, **options):
    with pytest.raises(ModelError) as refused:
        locate(directory, **options)
    return str(refused.value)


# Its location


def test_a_directory_holds_model_and_tokenizer(directory):
    assert locate(directory) == checkpoint.Files(model=directory, tokenizer=directory)


def test_a_relative_directory_becomes_absolute(directory, monkeypatch):
    monkeypatch.chdir(directory.parent)
    assert locate("./model").model == directory


def test_a_home_directory_is_found(directory, monkeypatch):
    monkeypatch.setenv("HOME", str(directory.parent))
    assert locate("~/model").model == directory


def test_an_archive_is_found_where_spark_unpacked_it(directory, monkeypatch):
    monkeypatch.chdir(directory.parent)
    assert locate("archive:model").model == directory


def test_a_missing_directory_is_refused_with_the_ways_to_ship_it(tmp_path):
    message = refusal(tmp_path / "none")
    assert f"There is no model directory '{tmp_path}/none'" in message
    assert "every machine of the cluster needs it" in message
    assert "--archives" in message


def test_a_missing_archive_is_refused_with_the_command_that_ships_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "--archives model.tar.gz#e5" in refusal("archive:e5")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_directory_without_config_or_weights_is_refused(directory, name):
    (directory / name).unlink()
    assert f"{directory} holds no checkpoint: it has no {name}." in refusal(directory)


def test_pickled_weights_are_refused_with_the_way_out(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    message = refusal(directory)
    assert "its weights only as pytorch_model.bin, a format that can run code" in message
    assert "save_pretrained" in message


def test_a_directory_without_tokenizer_is_refused(directory):
    for name in ("tokenizer.json", "vocab.txt"):
        (directory / name).unlink()
    assert f"{directory} has no tokenizer" in refusal(directory)


def test_the_tokenizer_may_be_in_another_directory(directory, models):
    elsewhere = models["xlmr_unigram"]
    assert locate(directory, tokenizer=elsewhere).tokenizer == Path(elsewhere)


def test_a_missing_tokenizer_directory_is_refused(directory, tmp_path):
    elsewhere = str(tmp_path / "none")
    assert f"There is no model directory '{elsewhere}'" in refusal(directory, tokenizer=elsewhere)


# Shards


@pytest.fixture
def sharded(directory):
    """The same checkpoint in several weight files."""
    model = transformers.AutoModel.from_pretrained(directory)
    (directory / "model.safetensors").unlink()
    model.save_pretrained(directory, max_shard_size="100KB")
    return directory


def test_every_shard_of_the_index_belongs_to_the_weights(sharded):
    names = checkpoint.weight_files(sharded)
    assert len(names) > 1
    assert names == sorted(path.name for path in sharded.glob("model-*.safetensors"))
    assert locate(sharded).model == sharded


def test_a_missing_shard_is_refused_by_name(sharded):
    name = checkpoint.weight_files(sharded)[-1]
    (sharded / name).unlink()
    assert f"it has no {name}." in refusal(sharded)


def test_every_shard_counts_in_the_hash(sharded):
    before = checkpoint.hash_files(locate(sharded))
    for name in checkpoint.weight_files(sharded)[:-1]:  # the last one has the pooler alone
        flip_middle_byte(sharded / name)
        after = checkpoint.hash_files(locate(sharded))
        assert after != before
        before = after


# Hashes


def flip_last_byte(path):
    """Change the content, not the size, at another time however coarse the clock of files is."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(0, 0))


def flip_middle_byte(path):
    """Change a weight: the last bytes of a file are the pooler's, which is never used."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(0, 0))


def test_equal_files_have_equal_hashes_in_any_directory(directory, model):
    assert checkpoint.hash_files(locate(directory)) == checkpoint.hash_files(locate(model))


def test_weights_count_in_the_hash_of_the_weights(directory):
    before = checkpoint.hash_files(locate(directory))
    flip_middle_byte(directory / "model.safetensors")
    after = checkpoint.hash_files(locate(directory))
    assert after.weights != before.weights
    assert after.tokenizer == before.tokenizer


@pytest.mark.parametrize(
    ("key", "value", "counts"),
    [
        ("num_attention_heads", 2, True),
        ("layer_norm_eps", 1e-6, True),
        ("is_decoder", True, True),
        ("transformers_version", "4.0.0", False),
        ("_name_or_path", "elsewhere", False),
    ],
)
def test_config_counts_where_it_decides_a_vector(directory, key, value, counts):
    before = checkpoint.hash_files(locate(directory))
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    after = checkpoint.hash_files(locate(directory))
    assert (after.weights != before.weights) is counts
    assert after.tokenizer == before.tokenizer


def test_pooler_counts_in_no_hash(directory):
    before = checkpoint.hash_files(locate(directory))
    flip_last_byte(directory / "model.safetensors")
    assert checkpoint.hash_files(locate(directory)) == before
    assert checkpoint.earlier_hashes(locate(directory)) != before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_earlier_hash_is_the_files(directory, name):
    before = checkpoint.earlier_hashes(locate(directory))
    flip_last_byte(directory / name)
    after = checkpoint.earlier_hashes(locate(directory))
    assert after.weights != before.weights
    assert after.tokenizer == before.tokenizer


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "vocab.txt"])
def test_every_tokenizer_file_counts_in_the_hash_of_the_tokenizer(directory, name):
    before = checkpoint.hash_files(locate(directory))
    flip_last_byte(directory / name)
    after = checkpoint.hash_files(locate(directory))
    assert after.tokenizer != before.tokenizer
    assert after.weights == before.weights


def test_a_readme_counts_in_no_hash(directory):
    before = checkpoint.hash_files(locate(directory))
    (directory / "README.md").write_text("words")
    assert checkpoint.hash_files(locate(directory)) == before


# What was published


def check(directory):
    spec = model_spec(str(directory), {"checkpoint": MINILM})
    checkpoint.check_published(spec, checkpoint.locate(spec))


def test_weights_with_the_published_hash_pass(minilm):
    check(minilm)


def test_weights_without_the_published_hash_are_refused(directory):
    sha256 = hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()
    with pytest.raises(ModelError) as refused:
        check(directory)
    assert f"model.safetensors has sha256 {sha256}, but {MINILM}" in str(refused.value)
    assert str(registry.find(MINILM).weights_sha256) in str(refused.value)


def test_one_altered_bit_is_refused(directory, monkeypatch):
    weights = directory / "model.safetensors"
    published = dataclasses.replace(
        registry.find(MINILM), weights_sha256=hashlib.sha256(weights.read_bytes()).hexdigest()
    )
    monkeypatch.setitem(registry.CHECKPOINTS, MINILM, published)
    check(directory)
    flip_last_byte(weights)
    with pytest.raises(ModelError, match="was published with"):
        check(directory)


def test_an_unpublished_checkpoint_has_nothing_to_compare_with(directory):
    spec = model_spec(str(directory), {})
    checkpoint.check_published(spec, checkpoint.locate(spec))


# JSON


def test_an_optional_json_file_that_is_missing_is_the_default(tmp_path):
    assert checkpoint.read_json(tmp_path / "none.json", {}) == {}


def test_a_required_json_file_that_is_missing_is_refused(tmp_path):
    with pytest.raises(ModelError, match=re.escape(f"{tmp_path} has no none.json")):
        checkpoint.read_json(tmp_path / "none.json")


@pytest.mark.parametrize("content", [b"{", b"\xff"], ids=["syntax", "utf-8"])
def test_broken_json_is_refused_by_its_path(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"config\.json is not valid JSON"):
        checkpoint.read_json(tmp_path / "config.json", {})


def test_json_is_read_as_utf8(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"a": "é"}, ensure_ascii=False), "utf-8")
    assert checkpoint.read_json(tmp_path / "a.json") == {"a": "é"}


def test_a_directory_that_looks_like_a_name_on_the_hub_is_pointed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "e5").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"write './models/e5' for the directory"):
        checkpoint.locate(model_spec("models/e5", {}))
