"""The result of a worker: one struct for each text, or a list of them if texts are split.

The Arrow arrays that workers build and the Spark types that the driver declares are side by side
here, because they must agree.
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
_FLOAT = (pa.float32(), T.FloatType())
_WINDOWS = {"window": _INT, "start": _INT, "end": _INT}
_SCALARS = {
    "n_tokens": _INT,
    "truncated": _BOOLEAN,
    "already_prompted": _BOOLEAN,
    "status": _STRING,
    "error": _STRING,
}
# Of each vector, for a job to aggregate; see ``_figures``.
_FIGURES = {"norm": _FLOAT, "pair_cosine": _FLOAT}
FIGURES = tuple(_FIGURES)
# Of a sort window's vectors: how far apart the two of a pair are. It is no fraction with a small
# denominator, so that the columns of a row, or neighbouring rows, are no pairs.
_PAIR_DISTANCE = (3 - 5**0.5) / 2


def vector_type(plan: Plan) -> T.DataType:
    """Returns the Spark type of a vector: an array of floats or bytes, or packed binary."""
    if plan.spec.output_type in _LISTS:
        return T.ArrayType(_LISTS[plan.spec.output_type][1], containsNull=False)
    return T.BinaryType()


def provenance(plan: Plan) -> dict[str, str]:
    """Returns where the vectors of a plan come from, for a column's metadata or a table.

    Raises:
        ModelError: If the driver does not have the checkpoint's files.
    """
    return {
        "fingerprint": plan.fingerprint.digest,
        "model": plan.spec.checkpoint or plan.spec.model,
        "revision": plan.spec.revision or "",
        "dim": str(plan.recipe.dim),
        "precision": plan.spec.precision,
        "output_type": plan.spec.output_type,
    }


def result_type(plan: Plan, *, figures: bool = False) -> T.StructType:
    """Returns the Spark type of the result of one text, or of one window of a split text.

    Args:
        plan: The model.
        figures: Whether the fields ``FIGURES`` follow the others.
    """
    windows = _WINDOWS if plan.recipe.long_text == "split" else {}
    return T.StructType(
        [
            *(T.StructField(name, kind) for name, (_, kind) in windows.items()),
            T.StructField("embedding", vector_type(plan)),
            *(T.StructField(name, kind) for name, (_, kind) in _SCALARS.items()),
            *(T.StructField(name, kind) for name, (_, kind) in _FIGURES.items() if figures),
        ]
    )


def udf_type(plan: Plan, *, figures: bool = False) -> T.DataType:
    """Returns the Spark type of a worker's result for one text column; see ``result_type``."""
    result = result_type(plan, figures=figures)
    return T.ArrayType(result, containsNull=False) if plan.recipe.long_text == "split" else result


def result_array(
    encoding: "Encoding",
    *,
    encoded: npt.NDArray[np.int64],
    status: Sequence[Status],
    errors: Mapping[int, str],
    plan: Plan,
    figures: bool = False,
) -> pa.Array:
    """Returns one struct for each text, or a list of them, in order.

    No Python object is created per vector.

    Args:
        encoding: The result of the texts that were encoded.
        encoded: The numbers of those texts.  # (encoded texts,)
        status: Status of every text before it was encoded.
        errors: Number of a text to message, for texts that were not encoded.
        plan: The plan, which has the type of the vectors.
        figures: Whether the structs have the fields ``FIGURES``.
    """
    encoding = _one_error_per_text(encoding)
    # Output rows: one for a text that was not encoded, one per window for a text that was.
    sizes = np.ones(len(status), dtype=np.int64)
    sizes[encoded] = np.bincount(encoding.owner, minlength=len(encoded))
    first = np.concatenate([[0], np.cumsum(sizes)])  # (texts + 1,)
    within = np.arange(len(encoding.owner)) - np.searchsorted(encoding.owner, encoding.owner)
    target = first[encoded[encoding.owner]] + within  # output row of each encoded row
    statuses = np.repeat(np.array(status, dtype=object), sizes)
    messages = np.full(len(statuses), None, dtype=object)
    for text, message in errors.items():
        messages[first[text]] = message
    for row, message in encoding.errors.items():
        statuses[target[row]], messages[target[row]] = "error", message

    ok = statuses == "ok"
    rows = len(statuses)
    columns = {
        "n_tokens": _scattered(encoding.n_tokens, target, rows),
        "truncated": _scattered(encoding.truncated, target, rows),
        "already_prompted": _scattered(encoding.already_prompted[encoding.owner], target, rows),
        "status": statuses,
        "error": messages,
    }
    arrays = {name: pa.array(values, _SCALARS[name][0]) for name, values in columns.items()}
    vectors = encoding.vectors if ok[target].all() else encoding.vectors[ok[target]]
    arrays["embedding"] = _vectors(vectors, ok, plan)
    if plan.recipe.long_text == "split":
        arrays |= _windows(encoding, target, first, ok)
    if figures:
        arrays |= _figures(vectors, ok, plan)
    names = result_type(plan, figures=figures).names
    structs = pa.StructArray.from_arrays([arrays[name] for name in names], names=names)
    if plan.recipe.long_text == "split":
        return pa.ListArray.from_arrays(pa.array(first, pa.int32()), structs)
    return structs


def _scattered(
    values: npt.NDArray[Any], target: npt.NDArray[np.int64], rows: int
) -> npt.NDArray[Any]:
    """The values at their output rows; zeros elsewhere.  # (rows,)."""
    result = np.zeros(rows, dtype=values.dtype)
    result[target] = values
    return result


def _one_error_per_text(encoding: "Encoding") -> "Encoding":
    """The encoding, reduced to one row for each split text that has an error in any window."""
    if not encoding.windows or not encoding.errors:
        return encoding
    messages: dict[int, str] = {}
    for row in sorted(encoding.errors):
        messages.setdefault(int(encoding.owner[row]), encoding.errors[row])
    first = np.append(True, encoding.owner[1:] != encoding.owner[:-1])
    kept_rows = np.flatnonzero(first | ~np.isin(encoding.owner, list(messages)))
    rows = np.searchsorted(encoding.owner[kept_rows], list(messages))
    return replace(
        encoding,
        vectors=encoding.vectors[kept_rows],
        n_tokens=encoding.n_tokens[kept_rows],
        truncated=encoding.truncated[kept_rows],
        owner=encoding.owner[kept_rows],
        windows=[encoding.windows[row] for row in kept_rows],
        errors=dict(zip(rows.tolist(), messages.values(), strict=True)),
    )


def _windows(
    encoding: "Encoding",
    target: npt.NDArray[np.int64],
    first: npt.NDArray[np.int64],
    ok: npt.NDArray[np.bool_],
) -> dict[str, pa.Array]:
    """Number, start and end of each window; a text without a vector has one row and no extent."""
    rows = int(first[-1])
    bounds = np.array([(window.start, window.end) for window in encoding.windows], dtype=np.int32)
    starts, ends = bounds.reshape(-1, 2).T
    return {
        "window": pa.array(np.arange(rows) - np.repeat(first[:-1], np.diff(first)), pa.int32()),
        "start": pa.array(_scattered(starts, target, rows), pa.int32(), mask=~ok),
        "end": pa.array(_scattered(ends, target, rows), pa.int32(), mask=~ok),
    }


def vectors_array(vectors: npt.NDArray[np.float32], plan: Plan) -> pa.Array:
    """Returns vectors as the column of a table, in the plan's output type."""
    return _vectors(vectors, np.ones(len(vectors), dtype=bool), plan)


def _vectors(vectors: npt.NDArray[np.float32], ok: npt.NDArray[np.bool_], plan: Plan) -> pa.Array:
    """One vector for each row that is ok, null for the others, from one flat buffer."""
    ranges = plan.calibration.ranges if plan.calibration else None
    values = np.ascontiguousarray(to_output_type(vectors, plan.spec.output_type, ranges))
    if plan.spec.output_type in _LISTS:
        kind = _LISTS[plan.spec.output_type][0]
        offsets = pa.array(_offsets(ok, values.shape[1]))
        flat = pa.array(values.reshape(-1), kind)
        return pa.ListArray.from_arrays(offsets, flat, mask=pa.array(~ok))
    offsets = _offsets(ok, values.shape[1] * values.itemsize)
    validity = pa.py_buffer(np.packbits(ok, bitorder="little"))
    buffers = [validity, pa.py_buffer(offsets), pa.py_buffer(values)]
    return pa.Array.from_buffers(pa.binary(), len(ok), buffers)


def _figures(
    vectors: npt.NDArray[np.float32], ok: npt.NDArray[np.bool_], plan: Plan
) -> dict[str, pa.Array]:
    """L2 norm of each vector, and its cosine with another vector of the sort window.

    They are taken from the float32 vectors, before integers or bits replace them, so that all
    output types are judged alike; float16 keeps values, and its own are taken. Both are null
    without a vector, and the cosine is null without a pair, or if a norm is zero or not finite.
    """
    if plan.spec.output_type == "float16":
        vectors = vectors.astype(np.float16).astype(np.float32)
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))  # (vectors,)
    # The partner of vector i is i + distance, from the beginning again after the end.
    distance = max(1, round(_PAIR_DISTANCE * len(vectors)))
    parts = (
        (slice(None, -distance), slice(distance, None)),
        (slice(-distance, None), slice(distance)),
    )
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # Slices, because a gathered copy of all partners takes several times as long.
        dots = [np.einsum("ij,ij->i", vectors[one], vectors[other]) for one, other in parts]
        cosines = np.concatenate(dots) / (norms * np.roll(norms, -distance))
    is_pair = np.isfinite(cosines) & (len(vectors) > 1)
    rows, target = len(ok), np.flatnonzero(ok)
    has_cosine = _scattered(is_pair, target, rows)
    return {
        "norm": pa.array(_scattered(norms, target, rows), mask=~ok),
        "pair_cosine": pa.array(_scattered(cosines, target, rows), mask=~has_cosine),
    }


def _offsets(ok: npt.NDArray[np.bool_], width: int) -> npt.NDArray[np.int32]:
    return np.concatenate([[0], np.cumsum(ok * width)]).astype(np.int32)
