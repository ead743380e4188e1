"""The manifest of a prepared model: older formats are read where they run, newer ones refused."""

import json

import pytest

from e5spark.errors import ModelError
from e5spark.model import prepared
from e5spark.model.fingerprint import Weights

# What e5spark wrote first in format 2: later keys have a default.
OLDEST = {
    "format": 2,
    "kind": "float",
    "source": {"weights": "a" * 64, "tokenizer": "b" * 64},
    "pad_id": 0,
    "pad_position": None,
}


@pytest.fixture
def save(tmp_path):
    """Writes a manifest; None leaves a key out."""

    def write(**changes):
        content = {name: value for name, value in {**OLDEST, **changes}.items() if value != "lost"}
        (tmp_path / prepared.MANIFEST).write_text(json.dumps(content))
        return tmp_path

    return write


def refusal(directory):
    with pytest.raises(ModelError) as refused:
        prepared.read(directory)
    assert f"{directory}/e5spark.json" in str(refused.value)
    assert "repare" in str(refused.value), "a remedy"
    return str(refused.value)


def test_a_directory_without_manifest_is_no_prepared_model(tmp_path):
    assert prepared.read(tmp_path) is None


def test_keys_that_an_older_manifest_lacks_have_their_defaults(save):
    manifest = prepared.read(save())
    assert manifest.source == Weights(weights="a" * 64, tokenizer="b" * 64)
    assert (manifest.checkpoint, manifest.files, manifest.needs_vnni) == (None, {}, False)


def test_keys_of_later_releases_are_left_alone(save):
    assert prepared.read(save(colour="blue")).kind == "float"


def test_a_later_format_is_refused_with_the_way_out(save):
    assert "has format 3; this e5spark reads formats up to 2. Install the release" in (
        refusal(save(format=3))
    )


def test_format_1_is_refused_with_the_reason(save):
    message = refusal(save(format=1, pad_position="lost"))
    assert "has format 1, which no longer runs: its graph numbers the tokens itself" in message


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "lost"},
        {"format": "2"},
        {"format": 0},
        {"format": True},
        {"kind": "lost"},
        {"kind": "int4"},
        {"source": None},
        {"source": {"weights": "a"}},
        {"pad_id": "lost"},
        {"files": 3},
        {"files": {"model.xml": 3}},
    ],
    ids=str,
)
def test_a_damaged_manifest_is_refused(save, changes):
    assert "is not a manifest of a prepared model" in refusal(save(**changes))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff"])
def test_a_file_that_is_no_manifest_is_refused(tmp_path, content):
    (tmp_path / prepared.MANIFEST).write_bytes(content)
    assert "is not a manifest of a prepared model" in refusal(tmp_path)
