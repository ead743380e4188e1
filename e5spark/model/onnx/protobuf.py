"""The wire format of protocol buffers, read without copies and without a schema.

Source: https://protobuf.dev/programming-guides/encoding/
"""

import struct
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT = 10
Value = int | memoryview


def fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """Yields the number and the value of each field of a message, in order.

    The value is an int (varint), or the bytes of a string, a nested message, a packed array or a
    number of fixed size.

    Raises:
        ValueError: If the message is truncated, or not a protocol buffer.
    """
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise ValueError(f"byte {position} begins a field without a number")
        if kind == _VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        if kind == _BYTES:
            length, position = _varint(message, position)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"byte {position} begins a field of kind {kind}")
        if length > len(message) - position:
            raise ValueError(
                f"a field needs {length} bytes, and {len(message) - position} are left"
            )
        yield number, message[position : position + length]
        position += length


def text(value: Value) -> str:
    """Returns the value of a string field.

    Raises:
        ValueError: If it is not UTF-8, or the field is not a string.
    """
    return str(content(value), "utf-8")


def content(value: Value) -> memoryview:
    """Returns the bytes of a field's value.

    Raises:
        ValueError: If the field is a varint.
    """
    if isinstance(value, int):
        raise ValueError("a field holds a number in place of bytes")
    return value


def signed(value: Value) -> int:
    """Returns the value of an int64 field, which a varint holds in two's complement.

    Raises:
        ValueError: If the field is not a varint.
    """
    if not isinstance(value, int):
        raise ValueError("a field holds bytes in place of a number")
    return value - (1 << 64) if value >= 1 << 63 else value


def float32(value: Value) -> float:
    """Returns the value of a float field.

    Raises:
        ValueError: If the field does not have four bytes.
    """
    try:
        number: float = struct.unpack("<f", content(value))[0]
    except struct.error as error:
        raise ValueError(str(error)) from error
    return number


def signed_integers(value: Value) -> npt.NDArray[np.int64]:
    """Returns the values of a repeated int64 field, packed or a single one.

    Raises:
        ValueError: If the array is truncated.
    """
    if isinstance(value, int):
        return np.array([signed(value)], np.int64)
    numbers, position = [], 0
    while position < len(value):
        number, position = _varint(value, position)
        numbers.append(signed(number))
    return np.array(numbers, np.int64)


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """The number at a position, and the position after it."""
    number = 0
    for index, byte in enumerate(message[position : position + _LONGEST_VARINT]):
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return number & (1 << 64) - 1, position + index + 1
    raise ValueError(f"byte {position} begins a number that does not end")
