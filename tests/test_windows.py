"""Windows of a text hold every token and cut no word; each is embedded as a text of its own."""

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e5spark.encoder import load, long_text
from e5spark.encoder.long_text import windows
from e5spark.model.checkpoint import locate
from e5spark.model.spec import model_spec
from tests.oracle import INVARIANCE_TOLERANCE, assert_close
from tests.texts import SENTENCES, all_texts, mixed_texts

SHAPES = ["bert_wordpiece", "xlmr_unigram"]
PREFIX = "passage: "
WORDS = [word for text in all_texts() for word in text.split()]
ZWJ = ["👨‍👩‍👧‍👦", "🏳️‍🌈", "👩🏾‍🚀", "🇯🇵", "e\u0301", "\U00020bb7"]

words = st.lists(st.sampled_from(WORDS), max_size=120).map(" ".join)
chinese = st.lists(st.sampled_from("".join(SENTENCES["chinese"])), max_size=200).map("".join)
emoji = st.lists(st.sampled_from(ZWJ), max_size=40).map("".join)
spaces = st.text(" \t\n\u00a0\u3000", max_size=4)
# Without control characters: the tokenizers remove most of those that Python takes for white space.
anything = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=60)
mixed = st.lists(st.one_of(words, chinese, emoji, spaces, anything), max_size=5).map(" ".join)
TEXTS = st.one_of(words, chinese, emoji, mixed)


@pytest.fixture(scope="session")
def loaded(models):
    """Each shape, loaded once."""
    return {
        shape: load(
            locate(model_spec(models[shape], {})),
            engine="torch",
            precision="fp32",
            device="cpu",
            threads=1,
        )
        for shape in SHAPES
    }


def split(loaded, shape, text, *, capacity, overlap):
    tokenizer = loaded[shape].tokenizer
    spans = tokenizer.spans(text)
    return spans, windows(text, spans, capacity=capacity, overlap=min(overlap, (capacity - 1) // 2))


capacities = st.integers(1, 60)
overlaps = st.integers(0, 30)


def inside_word(text, cut):
    """Whether a cut before this character separates two characters of a word."""
    return 0 < cut < len(text) and not text[cut - 1].isspace() and not text[cut].isspace()


@settings(max_examples=150)
@pytest.mark.parametrize("shape", SHAPES)
@given(text=TEXTS, capacity=capacities, overlap=overlaps)
def test_every_character_but_white_space_is_in_some_window(loaded, shape, text, capacity, overlap):
    _, actual = split(loaded, shape, text, capacity=capacity, overlap=overlap)
    end = 0
    for window in actual:
        assert not text[end : window.start].strip(), actual
        end = max(end, window.end)
    assert not text[end:].strip(), actual


@settings(max_examples=150)
@pytest.mark.parametrize("shape", SHAPES)
@given(text=TEXTS, capacity=capacities, overlap=overlaps)
def test_windows_go_forward(loaded, shape, text, capacity, overlap):
    _, actual = split(loaded, shape, text, capacity=capacity, overlap=overlap)
    assert all(0 <= window.start <= window.end <= len(text) for window in actual)
    for window, following in pairwise(actual):
        assert window.start < following.start, actual
        assert window.end < following.end, actual


@settings(max_examples=150)
@pytest.mark.parametrize("shape", SHAPES)
@given(text=TEXTS, capacity=capacities, overlap=overlaps)
def test_no_word_is_cut_unless_it_alone_is_larger_than_a_window(
    loaded, shape, text, capacity, overlap
):
    spans, actual = split(loaded, shape, text, capacity=capacity, overlap=overlap)
    for cut in {edge for window in actual for edge in (window.start, window.end)}:
        if not inside_word(text, cut):
            continue
        word = next(w for w in re.finditer(r"\S+", text) if w.start() < cut < w.end())
        tokens = ((spans.ends > word.start()) & (spans.starts < word.end())).sum()
        assert tokens > capacity, (word.group(), cut, actual)


@settings(max_examples=150)
@pytest.mark.parametrize("shape", SHAPES)
@given(text=TEXTS, capacity=capacities, overlap=overlaps)
def test_no_token_is_cut(loaded, shape, text, capacity, overlap):
    """Nor is a character cut that the tokenizer sees as several code points."""
    spans, actual = split(loaded, shape, text, capacity=capacity, overlap=overlap)
    for cut in {edge for window in actual for edge in (window.start, window.end)}:
        parts = [
            (text[start:cut], text[cut:end])
            for start, end in zip(spans.starts, spans.ends, strict=True)
            if start < cut < end
        ]
        # White space that a token begins with may be left out.
        assert all(not left.strip() or not right.strip() for left, right in parts), (parts, actual)


@settings(max_examples=150)
@pytest.mark.parametrize("shape", SHAPES)
@given(text=TEXTS, capacity=capacities, overlap=overlaps)
def test_neighbours_share_at_most_overlap_tokens(loaded, shape, text, capacity, overlap):
    spans, actual = split(loaded, shape, text, capacity=capacity, overlap=overlap)
    visible = np.array(
        [bool(text[a:b].strip()) for a, b in zip(spans.starts, spans.ends, strict=True)], dtype=bool
    )
    for window, following in pairwise(actual):
        shared = visible & (spans.starts >= following.start) & (spans.ends <= window.end)
        assert shared.sum() <= min(overlap, (capacity - 1) // 2), (window, following)


@settings(max_examples=150)
@pytest.mark.parametrize("shape", SHAPES)
@given(text=TEXTS, capacity=capacities, overlap=overlaps)
def test_no_window_holds_more_tokens_than_its_capacity(loaded, shape, text, capacity, overlap):
    spans, actual = split(loaded, shape, text, capacity=capacity, overlap=overlap)
    for window in actual:
        held = (spans.starts >= window.start) & (spans.ends <= window.end)
        first = int(np.argmax(held)) if held.any() else 0
        # Byte tokens of a character share its span, and stay together whatever their number.
        alike = (spans.starts == spans.starts[first]) & held if held.any() else held
        assert held.sum() <= max(capacity, alike.sum()), window


@settings(max_examples=150)
@pytest.mark.parametrize("shape", SHAPES)
@given(text=words, capacity=st.integers(8, 40), overlap=overlaps, section=st.integers(60, 400))
def test_a_text_split_section_by_section_has_the_windows_of_the_whole(
    loaded, shape, text, capacity, overlap, section
):
    _, expected = split(loaded, shape, text, capacity=capacity, overlap=overlap)
    tokenizer, shared = loaded[shape].tokenizer, min(overlap, (capacity - 1) // 2)
    actual = long_text.split(text, tokenizer, capacity=capacity, overlap=shared, section=section)
    assert actual == expected


@settings(max_examples=100)
@pytest.mark.parametrize("shape", SHAPES)
@given(text=TEXTS, capacity=st.integers(8, 40), section=st.integers(5, 100))
def test_sections_lose_no_character_whatever_the_text(loaded, shape, text, capacity, section):
    tokenizer = loaded[shape].tokenizer
    actual = long_text.split(text, tokenizer, capacity=capacity, overlap=2, section=section)
    edge = 0
    for window in actual:
        assert not text[edge : max(edge, window.start)].strip()
        edge = max(edge, window.end)
    assert not text[edge:].strip()


@settings(max_examples=50)
@pytest.mark.parametrize("shape", SHAPES)
@given(text=TEXTS)
def test_a_text_that_fits_is_one_window_whole(loaded, shape, text):
    tokens = len(loaded[shape].tokenizer.spans(text).starts)
    _, actual = split(loaded, shape, text, capacity=max(tokens, 1), overlap=8)
    assert [(window.start, window.end) for window in actual] == [(0, len(text))]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "word",
    [
        "e\u0301\u0323",
        "\u1112\u1161\u11ab",
        "한국어",
        "👨‍👩‍👧‍👦",
        "ﬁle",
        "¨",
        "½",
        "a\x1cb",
        "\x07bell",
    ],
)
def test_a_character_of_several_code_points_stays_whole(loaded, shape, word):
    """The spans of tokens may hold less than a character: e and its accent are one to XLM-R."""
    text = " ".join(["one two", word, "three", word, "four"] * 3)
    size = len(loaded[shape].tokenizer.spans(word).starts)
    _, actual = split(loaded, shape, text, capacity=max(size, 3), overlap=1)
    assert len(actual) > 3
    for cut in {edge for window in actual for edge in (window.start, window.end)}:
        inside = [m for m in re.finditer(re.escape(word), text) if m.start() < cut < m.end()]
        assert not inside, (cut, actual)


def test_a_window_that_would_only_repeat_its_predecessor_is_left_out(loaded):
    """The overlap gives way where it and the next word do not fit a window together."""
    _, actual = split(loaded, "xlmr_unigram", "0000 library", capacity=3, overlap=1)
    assert [(window.start, window.end) for window in actual] == [(0, 3), (2, 4), (5, 12)]


def test_a_text_of_one_token_more_is_two_windows(loaded):
    text = " ".join(SENTENCES["english"][:3])
    tokens = len(loaded["bert_wordpiece"].tokenizer.spans(text).starts)
    _, actual = split(loaded, "bert_wordpiece", text, capacity=tokens - 1, overlap=0)
    assert len(actual) == 2
    assert text[actual[1].start :] == text[actual[0].end :].lstrip()


def test_neighbours_share_as_many_whole_words_as_fit_in_overlap(loaded):
    text = " ".join(f"{letter}" for letter in "abcdefghijklmnopqrstuvwxyz" * 4)
    _, actual = split(loaded, "bert_wordpiece", text, capacity=20, overlap=5)
    for window, following in pairwise(actual):
        assert text[following.start : window.end].split() == text[: window.end].split()[-5:]


@settings(max_examples=40)
@pytest.mark.parametrize("shape", SHAPES)
@given(text=TEXTS, max_tokens=st.integers(16, 64))
def test_each_window_is_embedded_as_a_text_of_its_own(encoders, shape, text, max_tokens):
    """No window is truncated: its capacity counts the prompt and the special tokens."""
    options = {"max_tokens": max_tokens, "overlap": 2}
    actual = encoders(shape, long_text="split", **options).encode_rows([text], [PREFIX])
    parts = [text[window.start : window.end] for window in actual.windows]
    alone = encoders(shape, **options).encode_rows(parts, [PREFIX] * len(parts))
    assert not alone.truncated.any()
    assert not actual.truncated.any()
    assert (actual.n_tokens <= max_tokens).all()
    assert actual.n_tokens.tolist() == alone.n_tokens.tolist()
    assert_close(actual.vectors, alone.vectors, INVARIANCE_TOLERANCE)


@settings(max_examples=30)
@pytest.mark.parametrize("shape", SHAPES)
@given(
    rows=st.lists(st.sampled_from([*all_texts(), *mixed_texts(30, longest=600)]), max_size=8),
    token_budget=st.integers(1, 2000),
)
def test_windows_of_many_texts_come_in_the_order_of_their_texts(
    encoders, shape, rows, token_budget
):
    options = {"long_text": "split", "max_tokens": 32, "overlap": 4}
    together = encoders(shape, token_budget=token_budget, **options).encode_rows(
        rows, [PREFIX] * len(rows)
    )
    assert np.unique(together.owner).tolist() == list(range(len(rows)))
    assert (np.diff(together.owner) >= 0).all()
    for row, text in enumerate(rows):
        own = together.owner == row
        alone = encoders(shape, **options).encode_rows([text], [PREFIX])
        assert [w for w, mine in zip(together.windows, own, strict=True) if mine] == alone.windows
        assert_close(together.vectors[own], alone.vectors, INVARIANCE_TOLERANCE)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_window_has_less_room_beside_a_longer_prompt(encoders, shape):
    text = " ".join(SENTENCES["english"])
    encoder = encoders(shape, long_text="split", max_tokens=48, overlap=4)
    counts = []
    for prefix in ("", PREFIX, "Instruct: Find what answers the question of a user\nQuery: "):
        actual = encoder.encode_rows([text], [prefix])
        assert (actual.n_tokens <= 48).all()
        counts.append(len(actual.windows))
    assert counts[0] <= counts[1] < counts[2]
