"""What comes out of a worker: one struct for each text, or a list of them if texts are split.

The Arrow arrays that workers build and the Spark types that the driver announces stand side by
side here, because they must agree.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import types as T

from e5spark.model.output_type import to_output_type
from e5spark.model.resolve import Plan
from e5spark.text import Status

if TYPE_CHECKING:
    from e5spark.encoder import Encoding

_LISTS = {"float32": (pa.float32(), T.FloatType()), "int8": (pa.int8(), T.ByteType())}
_INT = (pa.int32(), T.IntegerType())
_BOOLEAN = (pa.bool_(), T.BooleanType())
_STRING = (pa.string(), T.StringType())
_WINDOWS = {"window": _INT, "start": _INT, "end": _INT}
_SCALARS = {
    "n_tokens": _INT,
    "truncated": _BOOLEAN,
    "already_prompted": _BOOLEAN,
    "status": _STRING,
    "error": _STRING,
}


def vector_type(plan: Plan) -> T.DataType:
    """Returns the Spark type of a vector: an array of floats or bytes, or packed binary."""
    if plan.spec.output_type in _LISTS:
        return T.ArrayType(_LISTS[plan.spec.output_type][1], containsNull=False)
    return T.BinaryType()


def result_type(plan: Plan) -> T.StructType:
    """Returns the Spark type of what is known of one text, or of one window of it."""
    windows = _WINDOWS if plan.recipe.long_text == "split" else {}
    return T.StructType(
        [
            *(T.StructField(name, kind) for name, (_, kind) in windows.items()),
            T.StructField("embedding", vector_type(plan)),
            *(T.StructField(name, kind) for name, (_, kind) in _SCALARS.items()),
        ]
    )


def udf_type(plan: Plan) -> T.DataType:
    """Returns the Spark type of a worker's answer for one text column."""
    one = result_type(plan)
    return T.ArrayType(one, containsNull=False) if plan.recipe.long_text == "split" else one


def table(
    found: "Encoding",
    *,
    wanted: npt.NDArray[np.int64],
    status: Sequence[Status],
    errors: Mapping[int, str],
    plan: Plan,
) -> pa.Array:
    """Returns one struct for each text, or a list of them, in order; no Python object a vector.

    Args:
        found: What became of the texts that were encoded.
        wanted: Which texts those are.  # (encoded texts,)
        status: Of every text, before it was encoded.
        errors: Text to message, of those that were refused before.
        plan: For the type of the vectors.
    """
    found = _failed_once(found)
    # Output rows: one for each text that was not encoded, the windows of one that was.
    sizes = np.ones(len(status), dtype=np.int64)
    sizes[wanted] = np.bincount(found.owner, minlength=len(wanted))
    first = np.concatenate([[0], np.cumsum(sizes)])  # (texts + 1,)
    within = np.arange(len(found.owner)) - np.searchsorted(found.owner, found.owner)
    where = first[wanted[found.owner]] + within  # output row of each encoded row
    states = np.repeat(np.array(status, dtype=object), sizes)
    messages = np.full(len(states), None, dtype=object)
    for text, message in errors.items():
        messages[first[text]] = message
    for row, message in found.errors.items():
        states[where[row]], messages[where[row]] = "error", message

    good = states == "ok"
    columns = {
        "n_tokens": _scattered(found.n_tokens, where, len(states)),
        "truncated": _scattered(found.truncated, where, len(states)),
        "already_prompted": _scattered(found.already_prompted[found.owner], where, len(states)),
        "status": states,
        "error": messages,
    }
    arrays = {name: pa.array(values, _SCALARS[name][0]) for name, values in columns.items()}
    vectors = found.vectors if good[where].all() else found.vectors[good[where]]
    arrays["embedding"] = _vectors(vectors, good, plan)
    if plan.recipe.long_text == "split":
        arrays |= _windows(found, where, first, good)
    names = result_type(plan).names
    structs = pa.StructArray.from_arrays([arrays[name] for name in names], names=names)
    if plan.recipe.long_text == "split":
        return pa.ListArray.from_arrays(pa.array(first, pa.int32()), structs)
    return structs


def _scattered(
    values: npt.NDArray[Any], where: npt.NDArray[np.int64], rows: int
) -> npt.NDArray[Any]:
    whole = np.zeros(rows, dtype=values.dtype)
    whole[where] = values
    return whole


def _failed_once(found: "Encoding") -> "Encoding":
    """The encoding with one row, its first, for each split text that has an error in any window."""
    if not found.windows or not found.errors:
        return found
    messages: dict[int, str] = {}
    for row in sorted(found.errors):
        messages.setdefault(int(found.owner[row]), found.errors[row])
    first = np.append(True, found.owner[1:] != found.owner[:-1])
    kept = np.flatnonzero(first | ~np.isin(found.owner, list(messages)))
    rows = np.searchsorted(found.owner[kept], list(messages))
    return replace(
        found,
        vectors=found.vectors[kept],
        n_tokens=found.n_tokens[kept],
        truncated=found.truncated[kept],
        owner=found.owner[kept],
        windows=[found.windows[row] for row in kept],
        errors=dict(zip(rows.tolist(), messages.values(), strict=True)),
    )


def _windows(
    found: "Encoding",
    where: npt.NDArray[np.int64],
    first: npt.NDArray[np.int64],
    good: npt.NDArray[np.bool_],
) -> dict[str, pa.Array]:
    """Number and extent of each window; a text without a vector has one row, without extent."""
    rows = int(first[-1])
    bounds = np.array([(each.start, each.end) for each in found.windows], dtype=np.int32)
    starts, ends = bounds.reshape(-1, 2).T
    return {
        "window": pa.array(np.arange(rows) - np.repeat(first[:-1], np.diff(first)), pa.int32()),
        "start": pa.array(_scattered(starts, where, rows), pa.int32(), mask=~good),
        "end": pa.array(_scattered(ends, where, rows), pa.int32(), mask=~good),
    }


def _vectors(vectors: npt.NDArray[np.float32], good: npt.NDArray[np.bool_], plan: Plan) -> pa.Array:
    """One vector for each good row, null for the others, from one flat buffer."""
    ranges = plan.calibration.ranges if plan.calibration else None
    values = np.ascontiguousarray(to_output_type(vectors, plan.spec.output_type, ranges))
    if plan.spec.output_type in _LISTS:
        kind = _LISTS[plan.spec.output_type][0]
        offsets = pa.array(_offsets(good, values.shape[1]))
        flat = pa.array(values.reshape(-1), kind)
        return pa.ListArray.from_arrays(offsets, flat, mask=pa.array(~good))
    offsets = _offsets(good, values.shape[1] * values.itemsize)
    validity = pa.py_buffer(np.packbits(good, bitorder="little"))
    buffers = [validity, pa.py_buffer(offsets), pa.py_buffer(values)]
    return pa.Array.from_buffers(pa.binary(), len(good), buffers)


def _offsets(good: npt.NDArray[np.bool_], width: int) -> npt.NDArray[np.int32]:
    return np.concatenate([[0], np.cumsum(good * width)]).astype(np.int32)
