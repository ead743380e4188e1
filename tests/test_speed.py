"""The speed of a sort window, measured on some of its forward passes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from e5spark.encoder import Encoder
from e5spark.encoder.batching import micro_batches
from e5spark.encoder.speed import _part, measure

TEXTS = [f"Text {number} " + "word " * (number % 37) for number in range(400)]


@pytest.fixture
def encoder(encoders: Callable[..., Encoder]) -> Encoder:
    return encoders(token_budget=64)


def test_a_part_of_a_window_has_the_passes_of_the_whole(encoder: Encoder) -> None:
    """Otherwise a row would be padded more, and the speed would be too low."""
    window = encoder.tokenize(TEXTS, ["passage: "] * len(TEXTS))
    batches = micro_batches(window.tokens.lengths, 64)
    part = _part(window, batches[3::10])
    again = micro_batches(part.tokens.lengths, 64)
    assert [len(rows) for rows in again] == [len(rows) for rows in batches[3::10]]
    assert [part.tokens.lengths[rows].tolist() for rows in again] == [
        window.tokens.lengths[rows].tolist() for rows in batches[3::10]
    ]


def test_speed_is_that_of_the_whole_window_whatever_part_was_timed(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock that counts tokens; a part that is new takes 50 more."""
    window = encoder.tokenize(TEXTS, ["passage: "] * len(TEXTS))
    seen: list[int] = []

    def timed(encoder: Encoder, part: Any) -> tuple[float, Any]:
        tokens = int(part.tokens.lengths.sum())
        seen.append(tokens)
        return float(tokens + 50 * (len(seen) % 2)), encoder.encode_tokens(part)

    monkeypatch.setattr("e5spark.encoder.speed._timed", timed)
    whole = int(window.tokens.lengths.sum())
    speed, encoding = measure(encoder, window, seconds=0)
    assert len(seen) == 2  # one part, twice
    assert speed.seconds == pytest.approx(whole)
    assert 0 < speed.measured < 0.5
    assert speed.shape_seconds >= 50
    assert len(encoding.vectors) < len(TEXTS)
    seen.clear()
    speed, _ = measure(encoder, window, seconds=1e9)
    assert speed.measured == pytest.approx(1)
    assert speed.seconds == pytest.approx(whole)


@pytest.mark.parametrize("long_text", ["truncate", "mean", "split"])
def test_any_kind_of_long_text_is_measured(
    encoders: Callable[..., Encoder], long_text: str
) -> None:
    encoder = encoders(long_text=long_text, max_tokens=64, overlap=8)
    texts = ["short", "long " * 200]
    speed, encoding = measure(encoder, encoder.tokenize(texts, ["passage: "] * 2), seconds=0)
    assert speed.measured == 1
    assert np.isfinite(encoding.vectors).all()
