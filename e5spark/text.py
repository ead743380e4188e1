"""Text columns from tables: decoded, and checked for null and empty texts.

This is the only place that decides what a row's ``status`` says about its text.
"""

import re
from collections.abc import Sequence
from typing import Literal

import pyarrow as pa

Status = Literal["ok", "null_text", "empty_text", "error"]

# Any character but white space, control characters, soft hyphens and the zero-width and direction
# marks: tokenizers drop these or turn them into unknown tokens, so that only the prompt would be
# embedded.
_VISIBLE = re.compile(
    "[^\\s\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]"
)


def decode(column: pa.Array) -> list[str | None]:
    """Returns the column's texts; null stays None, invalid UTF-8 becomes U+FFFD.

    Spark writes and reads strings as bytes and never checks them, so a Parquet string column can
    hold invalid UTF-8. Each invalid sequence is replaced as Python's ``errors="replace"`` does.

    Args:
        column: A string or binary array.
    """
    large = pa.types.is_large_string(column.type) or pa.types.is_large_binary(column.type)
    binary, string = (pa.large_binary(), pa.large_string()) if large else (pa.binary(), pa.string())
    column = column.cast(binary)
    try:
        texts: list[str | None] = column.cast(string).to_pylist()
    except pa.ArrowInvalid:  # some of it is not UTF-8
        contents = column.to_pylist()
        texts = [None if text is None else text.decode("utf-8", "replace") for text in contents]
    return texts


def repair(text: str) -> str:
    """Returns the text with lone surrogates replaced by U+FFFD; any other text unchanged."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        # Through UTF-16, so that a high and a low surrogate that belong together become one.
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def status(text: str | None) -> Status:
    """Returns ``null_text``, ``empty_text`` or ``ok``."""
    if text is None:
        return "null_text"
    return "ok" if _VISIBLE.search(text) else "empty_text"


def statuses(texts: Sequence[str | None]) -> list[Status]:
    """Returns the status of each text, in order."""
    # Most texts begin with a visible ASCII character and need no search.
    return ["ok" if text and "!" <= text[0] <= "~" else status(text) for text in texts]
