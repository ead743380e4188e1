"""Long texts as windows: runs of whole words whose tokens fit the model, prompt included."""

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from e5spark.encoder.batching import Longs
from e5spark.encoder.tokenizer import Spans

# White space to Python, but not to tokenizers, which remove these characters.
_WORD = re.compile(r"[\S\x0b\x1c-\x1f]+")


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
    tokens, edges = _units(text, spans, capacity)
    units = len(tokens) - 1
    found = []
    unit = 0
    while True:
        end = max(int(np.searchsorted(tokens, tokens[unit] + capacity, "right")) - 1, unit + 1)
        found.append(_stripped(text, int(edges[unit]), int(edges[end])))
        if end == units:
            return found
        # Not so far back that the window would end where this one does.
        shared = min(overlap, capacity - int(tokens[end + 1] - tokens[end]))
        back = int(np.searchsorted(tokens, tokens[end] - shared, "left"))
        unit = min(max(back, unit + 1), end)


def _units(text: str, spans: Spans, capacity: int) -> tuple[npt.NDArray[np.intp], Longs]:
    """Where each piece of text that should not be cut begins, and where the last one ends.

    Characters belong to the piece before them if no token has them: the span of a composed
    character, such as e and an accent, is that of the e alone.

    Returns:
        In tokens and in characters.  # (pieces + 1,) both
    """
    begins = np.fromiter((word.start() for word in _WORD.finditer(text)), dtype=np.int64)
    # By its last character: some tokenizers count the space before a word as part of its token.
    words = np.searchsorted(begins, spans.ends - 1, "right")
    breaks = new_word = _changes(words)
    whole = _not_inside(spans)
    for finer in (_changes(spans.words) & whole, whole):
        breaks = breaks | (_too_large(breaks, capacity) & finer)
    first = np.flatnonzero(breaks)
    edges = spans.starts.copy()
    word_begins = np.append(0, begins)[words]
    edges[new_word] = np.minimum(edges, word_begins)[new_word]
    edges[0] = 0
    return np.append(first, len(spans.starts)), np.append(edges[first], len(text))


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
