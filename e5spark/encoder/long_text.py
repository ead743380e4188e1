"""Windows of long texts: runs of whole words whose tokens fit the model, prompt included."""

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from e5spark.encoder.batching import Longs
from e5spark.encoder.tokenizer import Spans, Tokenizer, beginning

# The spans and edges of a section take about 100 bytes for a token: 50 MB.
SECTION_CHARS = 1 << 21
# The windows at the end of a section that may depend on the text after it.
_OPEN = 2
# The control characters are white space to Python but not to tokenizers, which remove them.
_WORD = re.compile(r"[\S\x0b\x1c-\x1f]+")


@dataclass(frozen=True, kw_only=True)
class Window:
    """A part of a text, in characters (code points, as Spark's ``substring`` counts them).

    Attributes:
        start: First character, from 0.
        end: The character after the last one.
    """

    start: int
    end: int


def split(
    text: str, tokenizer: Tokenizer, *, capacity: int, overlap: int, section: int = SECTION_CHARS
) -> list[Window]:
    """Returns the windows of a text, as ``windows`` does, in bounded memory.

    A longer text than ``section`` is split section by section. The last two windows of a section
    may depend on what follows, so the next section begins where the first of them begins.

    Args:
        text: The text without its prompt.
        tokenizer: The checkpoint's tokenizer.
        capacity: Maximum number of tokens of the text in one window.
        overlap: Maximum number of tokens that a window repeats from the window before it.
        section: Characters that are split at once.
    """
    result: list[Window] = []
    begin, size = 0, section
    while True:
        part = beginning(text[begin : begin + size + 1], size)
        parts = windows(part, tokenizer.spans(part), capacity=capacity, overlap=overlap)
        if begin + len(part) == len(text):
            return [*result, *(_moved(window, begin) for window in parts)]
        if len(parts) < _OPEN + 1 or parts[-_OPEN].start == 0:
            size *= 2  # few tokens in many characters
            continue
        result += [_moved(window, begin) for window in parts[:-_OPEN]]
        begin, size = begin + parts[-_OPEN].start, section


def windows(text: str, spans: Spans, *, capacity: int, overlap: int) -> list[Window]:
    """Returns the windows of a text, in order; together they hold all its tokens.

    No window begins or ends inside a word, unless the word alone is larger than a window. Such a
    word is cut between the pre-tokenizer's words (Chinese characters, punctuation), and if these
    are still too large, between tokens.

    Args:
        text: The text without its prompt.
        spans: The spans of the text's tokens.
        capacity: Maximum number of tokens of the text in one window.
        overlap: Maximum number of tokens that a window repeats from the window before it.
    """
    if len(spans.starts) <= capacity:
        return [Window(start=0, end=len(text))]
    tokens, edges = _units(text, spans, capacity)
    units = len(tokens) - 1
    result = []
    unit = 0
    while True:
        end = max(int(np.searchsorted(tokens, tokens[unit] + capacity, "right")) - 1, unit + 1)
        result.append(_stripped(text, int(edges[unit]), int(edges[end])))
        if end == units:
            return result
        # Never so far back that the next window would end where this one ends.
        shared = min(overlap, capacity - int(tokens[end + 1] - tokens[end]))
        back = int(np.searchsorted(tokens, tokens[end] - shared, "left"))
        unit = min(max(back, unit + 1), end)


def _units(text: str, spans: Spans, capacity: int) -> tuple[npt.NDArray[np.intp], Longs]:
    """The starts of all pieces of the text that should stay whole, then the end of the last piece.

    Characters without a token belong to the piece before them: the span of a composed character,
    such as e with an accent, covers only the e.

    Returns:
        The same edges in tokens and in characters.  # (pieces + 1,) both
    """
    word_starts = np.fromiter((word.start() for word in _WORD.finditer(text)), dtype=np.int64)
    # By the last character: some tokenizers count the space before a word as part of its token.
    words = np.searchsorted(word_starts, spans.ends - 1, "right")
    breaks = new_word = _changes(words)
    new_character = _starts_character(spans)
    for finer in (_changes(spans.words) & new_character, new_character):
        breaks = breaks | (_too_large(breaks, capacity) & finer)
    first = np.flatnonzero(breaks)
    edges = spans.starts.copy()
    token_words = np.append(0, word_starts)[words]
    edges[new_word] = np.minimum(edges, token_words)[new_word]
    edges[0] = 0
    return np.append(first, len(spans.starts)), np.append(edges[first], len(text))


def _changes(labels: Longs) -> npt.NDArray[np.bool_]:
    return np.append(True, labels[1:] != labels[:-1])


def _starts_character(spans: Spans) -> npt.NDArray[np.bool_]:
    """Which tokens start a new character: byte tokens of one character share its span."""
    return np.append(True, spans.starts[1:] >= spans.ends[:-1])


def _too_large(breaks: npt.NDArray[np.bool_], capacity: int) -> npt.NDArray[np.bool_]:
    """Which tokens belong to a unit that has more tokens than a window holds."""
    unit = np.cumsum(breaks) - 1
    large: npt.NDArray[np.bool_] = (np.bincount(unit) > capacity)[unit]
    return large


def _moved(window: Window, by: int) -> Window:
    return Window(start=window.start + by, end=window.end + by)


def _stripped(text: str, start: int, end: int) -> Window:
    part = text[start:end]
    return Window(
        start=start + len(part) - len(part.lstrip()), end=end - len(part) + len(part.rstrip())
    )
