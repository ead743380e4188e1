"""What a table says of its vectors, and the vectors of an Arrow array as a float32 matrix."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import types as T

from e5spark.errors import ColumnError, ConflictError, InputError
from e5spark.spark.columns import resolve_column

_INTEGERS = (T.ByteType, T.ShortType, T.IntegerType, T.LongType)
_LISTS = {"float": "float32", "tinyint": "int8"}
_BYTES = ("float16", "uint8", "binary", "ubinary")
_BITS = ("binary", "ubinary")
# Stored types whose values need no calibration, so that float32 queries are compared with them.
_COMPARED_WITH_FLOATS = ("float16", *_BITS)
# Facts of a model that the metadata of a column has beside the fingerprint.
_SHARED = ("model", "revision", "dim", "precision")


@dataclass(frozen=True, kw_only=True)
class VectorColumn:
    """A column of vectors, as far as the table's schema tells.

    Attributes:
        name: The column, as the table spells it.
        output_type: How a vector is stored; see ``e5spark.model.output_type``.
        facts: What the column's metadata says: fingerprint, model, dim ...; empty if nothing.
        fingerprints: The column with the first 16 digits of each row's fingerprint; None if the
            table has none.
    """

    name: str
    output_type: str
    facts: dict[str, str]
    fingerprints: str | None

    @property
    def dim(self) -> int | None:
        """Returns the number of components; None if the metadata does not say."""
        return int(self.facts["dim"]) if self.facts.get("dim") else None

    @property
    def fingerprint(self) -> str | None:
        """Returns the fingerprint of the vectors; None if the metadata does not say."""
        return self.facts.get("fingerprint")


def vector_column(df: DataFrame, name: str) -> VectorColumn:
    """Returns the column of vectors of this name.

    Raises:
        ColumnError: If there is no such column, it does not hold vectors, or it holds bytes and
            does not say which output type they are.
    """
    field = resolve_column(df, name)
    prefix = "e5spark."
    metadata: dict[str, Any] = field.metadata or {}
    facts = {key[len(prefix) :]: str(metadata[key]) for key in metadata if key.startswith(prefix)}
    fingerprints = f"{name}_fp".lower()
    return VectorColumn(
        name=field.name,
        output_type=_output_type(field, facts),
        facts=facts,
        fingerprints=next((each for each in df.columns if each.lower() == fingerprints), None),
    )


def id_column(df: DataFrame, name: str) -> T.StructField:
    """Returns the column of ids of this name, its strings without a collation.

    Raises:
        ColumnError: If there is no such column, or it holds neither strings nor whole numbers.
    """
    field = resolve_column(df, name)
    if not isinstance(field.dataType, (T.StringType, *_INTEGERS)):
        raise ColumnError(
            f"Column {field.name!r} is {field.dataType.simpleString()}; an id must be a string or "
            f"a whole number. Cast it: F.col({field.name!r}).cast('string')."
        )
    kind = T.StringType() if isinstance(field.dataType, T.StringType) else field.dataType
    return T.StructField(field.name, kind)


def check_comparable(queries: VectorColumn, corpus: VectorColumn) -> None:
    """Checks that the vectors of two tables may be compared, as far as their schemas tell.

    Raises:
        ColumnError: If their output types or dims differ.
        ConflictError: If their fingerprints differ.
    """
    same_type = queries.output_type == corpus.output_type
    if not same_type and not (
        queries.output_type == "float32" and corpus.output_type in _COMPARED_WITH_FLOATS
    ):
        raise ColumnError(
            f"The queries' vectors are {queries.output_type}, the corpus' {corpus.output_type}; "
            "embed both with one output_type. float32 queries may also search float16, binary and "
            "ubinary vectors."
        )
    if queries.dim and corpus.dim:
        check_dims(queries.dim, corpus.dim)
    facts = ("fingerprint",) if same_type else _SHARED
    for fact in facts:
        left, right = queries.facts.get(fact), corpus.facts.get(fact)
        if left and right and left != right:  # a local directory has an empty revision
            raise ConflictError(
                f"The {fact} of the queries' vectors is {left[:40]!r}, of the corpus' "
                f"{right[:40]!r}: their vectors must not be compared. Embed both with the same "
                "model and options."
            )


def check_dims(left: int, right: int) -> None:
    """Checks that the vectors of two sides have the same number of components.

    Raises:
        ColumnError: If they do not.
    """
    if left != right:
        raise ColumnError(
            f"Vectors of {left} and of {right} dimensions cannot be compared; embed all texts with "
            "the same model and dim."
        )


def matrix(vectors: pa.Array, output_type: str, dim: int | None) -> npt.NDArray[np.float32]:
    """Returns vectors as the rows of a matrix whose products are scores.

    - float32, float16: the values. A score is their inner product, the cosine of vectors of unit
      length.
    - int8, uint8: the steps of the calibration, -128 to 127, divided by their length: the score is
      the cosine of the steps, because a table does not hold its calibration.
    - binary, ubinary: 1 and -1 for each sign; ``query_matrix`` divides one side, so that the score
      is the cosine of the signs, ``1 - 2 * Hamming distance / dim``.

    Args:
        vectors: Lists or bytes, without nulls.
        output_type: How they are stored.
        dim: Number of components; None takes all that are stored.

    Raises:
        ColumnError: If a vector is of another length.
        InputError: If a component is null.
    """
    values = _stored(vectors, output_type)
    if output_type in _BITS:
        if dim is not None and len(values):
            check_dims(-(-dim // 8) * 8, values.shape[1] * 8)
        packed = values if output_type == "ubinary" else values ^ np.uint8(0x80)
        bits = np.unpackbits(packed, axis=1, count=dim)
        signs: npt.NDArray[np.float32] = bits.astype(np.float32) * 2 - 1
        return signs
    if dim is not None and len(values):
        check_dims(dim, values.shape[1])
    if output_type in ("int8", "uint8"):
        steps = values.astype(np.float32) - (128 if output_type == "uint8" else 0)
        lengths = np.sqrt(np.einsum("ij,ij->i", steps, steps, dtype=np.float64))  # exact sums
        lengths[lengths == 0] = 1
        unit: npt.NDArray[np.float32] = (steps / lengths[:, None]).astype(np.float32)
        return unit
    return values.astype(np.float32, copy=False)


def query_matrix(
    vectors: npt.NDArray[np.float32], *, output_type: str, corpus: str
) -> npt.NDArray[np.float32]:
    """Returns one side of a product, scaled for the output type of the other side.

    Args:
        vectors: The result of ``matrix``.  # (rows, dim)
        output_type: Its output type.
        corpus: The output type of the other side.
    """
    if corpus not in _BITS:
        return vectors
    # The other side is 1 and -1. With signs on both sides all sums are exact in float64.
    dim = vectors.shape[1]
    scale = 1 / dim if output_type in _BITS else dim**-0.5
    scaled: npt.NDArray[np.float32] = vectors * np.float32(scale)
    return scaled


def _output_type(field: T.StructField, facts: dict[str, str]) -> str:
    kind = field.dataType
    if isinstance(kind, T.ArrayType) and kind.elementType.simpleString() in _LISTS:
        return _LISTS[kind.elementType.simpleString()]
    if not isinstance(kind, T.BinaryType):
        raise ColumnError(
            f"Column {field.name!r} is {kind.simpleString()}; vectors are array<float>, "
            "array<tinyint> or binary. Vectors of doubles must be cast: "
            f"F.col({field.name!r}).cast('array<float>')."
        )
    output_type = facts.get("output_type", "")
    if output_type not in _BYTES:
        raise ColumnError(
            f"Column {field.name!r} holds bytes, and its metadata does not say which output type "
            "they are. Read the table that the job wrote; or say it: df.withMetadata("
            f"{field.name!r}, {{'e5spark.output_type': 'float16'}}), or uint8, binary, ubinary."
        )
    return output_type


def _stored(vectors: pa.Array, output_type: str) -> npt.NDArray[Any]:
    """The values as they are stored, a row for each vector; a view where Arrow allows it."""
    rows = len(vectors)
    if output_type in _LISTS.values():
        flat = vectors.flatten()
        if flat.null_count:
            raise InputError("A vector has a component that is null; embed such rows again.")
        values, offsets = flat.to_numpy(), vectors.offsets.to_numpy()
    else:
        bounds = np.int64 if vectors.type == pa.large_binary() else np.int32
        _, positions, data = vectors.buffers()
        offsets = np.frombuffer(positions or bytes(8), bounds)
        offsets = offsets[vectors.offset : vectors.offset + rows + 1]
        values = np.frombuffer(data or b"", np.uint8)[offsets[0] : offsets[-1]]
    lengths = np.diff(offsets)
    if rows and (lengths != lengths[0]).any():
        raise ColumnError(
            f"The vectors have {lengths.min()} to {lengths.max()} values; all vectors of a column "
            "must have the same dim."
        )
    if output_type == "float16" and rows and lengths[0] % 2:
        raise ColumnError(
            f"The vectors have {lengths[0]} bytes, and float16 needs an even number; check which "
            "output type they are."
        )
    table: npt.NDArray[Any] = values.reshape(rows, lengths[0] if rows else 0)
    return table.view("<f2") if output_type == "float16" else table
