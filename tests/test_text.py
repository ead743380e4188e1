import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e5spark import text

KINDS = [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()]
BYTES = st.lists(st.none() | st.binary(max_size=20) | st.text(max_size=20).map(str.encode))
ANY_CODE_POINT = st.text(st.characters(codec=None, exclude_categories=()))


def column(values, kind):
    """An array of these bytes, valid UTF-8 or not; pyarrow itself refuses invalid strings."""
    large = kind in (pa.large_string(), pa.large_binary())
    return pa.array(values, pa.large_binary() if large else pa.binary()).view(kind)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@given(values=BYTES)
def test_decoding_keeps_valid_texts_and_nulls_and_replaces_what_is_invalid(kind, values):
    expected = [None if value is None else value.decode("utf-8", "replace") for value in values]
    assert text.decode(column(values, kind)) == expected


@pytest.mark.parametrize("kind", KINDS, ids=str)
@given(values=BYTES, start=st.integers(0, 10), length=st.integers(0, 10))
def test_a_slice_decodes_as_the_whole_does(kind, values, start, length):
    whole = column(values, kind)
    assert text.decode(whole.slice(start, length)) == text.decode(whole)[start : start + length]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_invalid_utf8_becomes_the_replacement_character(kind):
    values = [b"tea\xe9", b"\xff\xfe", b"cut \xf0\x9f\x98", b"\xed\xa0\x80 surrogate"]
    texts = text.decode(column(values, kind))
    assert texts == ["tea\ufffd", "\ufffd\ufffd", "cut \ufffd", "\ufffd\ufffd\ufffd surrogate"]


def test_decoded_text_keeps_nul_bytes():
    assert text.decode(column([b"a\x00b", b"\x00"], pa.string())) == ["a\x00b", "\x00"]


def test_null_text_has_status_null_text():
    assert text.status(None) == "null_text"


@pytest.mark.parametrize(
    "nothing",
    ["", " ", "\t\n\r\x0b\x0c", "\x00", "\x00\x01\x1f\x7f\x9f", "\u00a0\u2003\u3000\u2028\u0085"],
)
def test_white_space_and_control_characters_alone_have_status_empty_text(nothing):
    assert text.status(nothing) == "empty_text"


@pytest.mark.parametrize(
    "nothing",
    [
        "\u200b\u200c\u200d\u2060\ufeff",
        "\u200e\u200f\u061c\u202a\u202e\u2066\u2069",
        "\u00ad \u180e",
    ],
    ids=["zero-width", "direction marks", "soft hyphen"],
)
def test_marks_that_show_nothing_alone_have_status_empty_text(nothing):
    assert text.status(nothing) == "empty_text"


@pytest.mark.parametrize("something", ["x", ".", "a\x00b", "\u200bx\u200b", "\u4e00", "\ufffd"])
def test_one_visible_character_has_status_ok(something):
    assert text.status(something) == "ok"


def test_statuses_keep_the_order_of_the_texts():
    assert text.statuses(["a", None, " "]) == ["ok", "null_text", "empty_text"]


@given(st.text())
def test_repair_returns_a_proper_text_as_it_is(proper):
    assert text.repair(proper) is proper


@given(ANY_CODE_POINT)
def test_a_repaired_text_can_be_encoded(broken):
    text.repair(broken).encode()


@given(st.text(), st.sampled_from(["\ud800", "\udbff", "\udc00", "\udfff"]), st.text())
def test_a_lone_surrogate_becomes_one_replacement_character(before, lone, after):
    assert text.repair(before + lone + after) == before + "\ufffd" + after


@given(st.text(), st.characters(min_codepoint=0x10000), st.text())
def test_two_surrogates_that_belong_together_become_their_character(before, character, after):
    units = character.encode("utf-16-be")
    pair = "".join(chr(int.from_bytes(units[at : at + 2])) for at in (0, 2))
    assert text.repair(before + pair + after) == before + character + after
