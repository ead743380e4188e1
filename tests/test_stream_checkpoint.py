"""A stream checkpoint belongs to one output; the streams that fill them are in test_streaming."""

import json

import pytest

from e5spark.errors import ConflictError
from e5spark.tables.ledger.stream_checkpoint import claim
from e5spark.tables.storage.local import LocalStorage


@pytest.fixture
def place(tmp_path):
    return lambda name: LocalStorage(str(tmp_path / name), tmp_path / name)


def test_a_stream_checkpoint_is_claimed_again_by_its_output_and_by_no_other(place):
    checkpoint = place("checkpoint")
    claim(checkpoint, place("one"))
    checkpoint.put("offsets/0", b"read")
    claim(checkpoint, place("one"))
    with pytest.raises(ConflictError, match="went into another output"):
        claim(checkpoint, place("other"))


def test_a_checkpoint_of_a_later_release_is_refused(place):
    checkpoint = place("checkpoint")
    checkpoint.put("e5spark.json", json.dumps({"format": 99, "token": "t"}).encode())
    with pytest.raises(ConflictError, match="format 99; this e5spark reads formats up to"):
        claim(checkpoint, place("one"))
