"""Long texts as windows: runs of whole words whose tokens fit the model, prompt included."""

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from e5spark.encoder.tokenizer import Longs, Spans

_WORD = re.compile(r"\S+")


@dataclass(frozen=True, kw_only=True)
class Window:
    """A part of a text, in characters (code points, as Spark's ``substring`` counts them)."""

    start: int
    end: int


def windows(text: str, spans: Spans, *, capacity: int, overlap: int) -> list[Window]:
    """Returns the windows of a text, in order; together they hold every token of it.

    No window begins or ends inside a word, unless that word alone is larger than a window: then
    it is cut between the pre-tokenizer's words (Chinese characters, punctuation), and if these
    are still too large, between tokens.

    Args:
        text: Without its prompt.
        spans: Where its tokens lie.
        capacity: Most tokens of the text in one window.
        overlap: Tokens, at most, that a window repeats of the one before it.
    """
    if len(spans.starts) <= capacity:
        return [Window(start=0, end=len(text))]
    first = _units(text, spans, capacity)  # first token of each unit
    tokens = np.append(first, len(spans.starts))  # (units + 1,)
    found = []
    unit = 0
    while True:
        end = max(int(np.searchsorted(tokens, tokens[unit] + capacity, "right")) - 1, unit + 1)
        begins, stops = int(spans.starts[tokens[unit]]), int(spans.ends[tokens[end] - 1])
        found.append(_stripped(text, begins, stops))
        if end == len(first):
            return found
        back = int(np.searchsorted(tokens, tokens[end] - overlap, "left"))
        unit = min(max(back, unit + 1), end)


def _units(text: str, spans: Spans, capacity: int) -> npt.NDArray[np.intp]:
    """The first token of each piece of text that should not be cut."""
    begins = np.fromiter((word.start() for word in _WORD.finditer(text)), dtype=np.int64)
    # By its last character: some tokenizers count the space before a word as part of its token.
    words = np.searchsorted(begins, spans.ends - 1, "right")
    breaks = _changes(words)
    for finer in (_changes(spans.words), _not_inside(spans)):
        breaks = breaks | (_too_large(breaks, capacity) & finer)
    return np.flatnonzero(breaks)


def _changes(labels: Longs) -> npt.NDArray[np.bool_]:
    return np.append(True, labels[1:] != labels[:-1])


def _not_inside(spans: Spans) -> npt.NDArray[np.bool_]:
    """Which tokens begin a character of their own: byte tokens of one character share it."""
    return np.append(True, spans.starts[1:] >= spans.ends[:-1])


def _too_large(breaks: npt.NDArray[np.bool_], capacity: int) -> npt.NDArray[np.bool_]:
    """Which tokens belong to a unit of more tokens than a window holds."""
    unit = np.cumsum(breaks) - 1
    large: npt.NDArray[np.bool_] = (np.bincount(unit) > capacity)[unit]
    return large


def _stripped(text: str, start: int, end: int) -> Window:
    part = text[start:end]
    return Window(
        start=start + len(part) - len(part.lstrip()), end=end - len(part) + len(part.rstrip())
    )
