"""An ONNX file: its tensors, mapped into memory, and its nodes; no onnx package is needed.

The numbers of the fields: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3
"""

import math
import mmap
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from e5spark.errors import ModelError
from e5spark.model.onnx.protobuf import (
    Value,
    content,
    fields,
    float32,
    signed,
    signed_integers,
    text,
)

# TensorProto.DataType; bfloat16, which numpy lacks, is read as its 16 bits.
_DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    16: "bfloat16",
}
_NUMPY = {"bfloat16": "<u2", "bool": "?"}
_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor of a graph.

    Attributes:
        name: Its name in the graph; empty if it has none.
        dtype: Its type by numpy's name, ``bfloat16``, or ``type N`` for any other.
        shape: Its dims.
        data: Its values, little-endian and row by row; a view into the mapped file.
        external: The file beside the ONNX file that holds the values; empty for the file itself.
        offset: The first byte of the values in that file.
        length: The bytes of the values in that file; None for all that follow.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: memoryview = field(repr=False)
    external: str = ""
    offset: int = 0
    length: int | None = None

    def array(self) -> npt.NDArray[np.generic]:
        """Returns the values without a copy, bfloat16 as its bits.  # shape.

        Raises:
            ValueError: If the values are not as many as the dims need, or numpy has no such type.
        """
        if self.dtype.startswith("type"):
            raise ValueError(f"has {self.name} in ONNX's {self.dtype}, which e5spark does not read")
        dtype = np.dtype(_NUMPY.get(self.dtype, self.dtype)).newbyteorder("<")
        if len(self.data) != dtype.itemsize * math.prod(self.shape):
            raise ValueError(
                f"has {self.name} with {len(self.data)} bytes, but its shape {self.shape} in "
                f"{self.dtype} needs {dtype.itemsize * math.prod(self.shape)}"
            )
        return np.frombuffer(self.data, dtype).reshape(self.shape)


@dataclass(frozen=True, kw_only=True)
class Node:
    """An operation of a graph.

    Attributes:
        name: Its name, such as ``/encoder/layer.0/output/dense/MatMul``.
        operator: Its type, such as ``MatMul``.
        domain: Whose operator it is; empty for ONNX's own.
        inputs: Names of tensors; empty for an input that is left out.
        outputs: Names of tensors.
        attributes: Its attributes that are numbers, strings, lists of int or tensors.
    """

    name: str
    operator: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, "Attribute"]


Attribute = int | float | str | tuple[int, ...] | Tensor


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The graph of an ONNX file.

    Attributes:
        initializers: The weights, in the order of the file.
        nodes: The operations, in the order of the file.
        inputs: Names of the inputs that a caller passes.
    """

    initializers: tuple[Tensor, ...]
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]

    @property
    def external_files(self) -> tuple[str, ...]:
        """Returns the names of the files beside the ONNX file that hold weights."""
        names = {tensor.external for tensor in self.initializers if tensor.external}
        return tuple(sorted(names))


def read_graph(path: Path) -> Graph:
    """Returns the graph of an ONNX file; weights in files beside it have no data yet.

    Raises:
        ModelError: If the file is truncated or not ONNX, or names weights outside its directory.
    """
    message = _mapped(path)
    if bytes(message[: len(_POINTER)]) == _POINTER:
        raise ModelError(
            f"{path} is a Git LFS pointer ({len(message)} bytes), not the model; run git lfs pull "
            f"in {path.parent}, or fetch it again."
        )
    try:
        graph = _model(message)
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        raise ModelError(
            f"{path} is not a complete ONNX file: it has {len(message)} bytes, and {error}. Fetch "
            "it again."
        ) from error
    for name in graph.external_files:
        if name in (".", "..") or "/" in name or "\\" in name:
            raise ModelError(
                f"{path} has weights in {name!r}; e5spark reads them from files in the same "
                "directory only. Export the model again."
            )
    return graph


def with_external(graph: Graph, directory: Path) -> Graph:
    """Returns the graph with the data of the weights that other files hold.

    Args:
        graph: A graph.
        directory: The directory of its files.

    Raises:
        ModelError: If a file is missing, or ends before a tensor does.
    """
    files = {}
    for name in graph.external_files:
        if not (directory / name).is_file():
            raise ModelError(
                f"{directory} lacks {name}, which holds weights of its ONNX file; add it."
            )
        files[name] = _mapped(directory / name)
    tensors = []
    for tensor in graph.initializers:
        if tensor.external:
            content = files[tensor.external]
            end = len(content) if tensor.length is None else tensor.offset + tensor.length
            if end > len(content):
                raise ModelError(
                    f"{directory / tensor.external} has {len(content)} bytes, and "
                    f"{tensor.name} ends at byte {end}: the file is not complete. Fetch it again."
                )
            tensor = replace(tensor, data=content[tensor.offset : end])
        tensors.append(tensor)
    return replace(graph, initializers=tuple(tensors))


def _mapped(path: Path) -> memoryview:
    if path.stat().st_size == 0:
        return memoryview(b"")
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _model(message: memoryview) -> Graph:
    graphs = [content(value) for number, value in fields(message) if number == 7]
    if not graphs:
        raise ValueError("no graph is in it")
    initializers, nodes, inputs = [], [], []
    for number, value in fields(graphs[-1]):
        if number == 1:
            nodes.append(_node(content(value)))
        elif number == 5:
            initializers.append(_tensor(content(value)))
        elif number == 11:
            inputs += [text(part) for key, part in fields(content(value)) if key == 1]
    weights = {tensor.name for tensor in initializers}  # old files list them as inputs too
    return Graph(
        initializers=tuple(initializers),
        nodes=tuple(nodes),
        inputs=tuple(name for name in inputs if name not in weights),
    )


def _node(message: memoryview) -> Node:
    texts: dict[int, list[str]] = {number: [] for number in (1, 2, 3, 4, 7)}
    attributes = {}
    for number, value in fields(message):
        if number in texts:
            texts[number].append(text(value))
        elif number == 5:
            name, attribute = _attribute(content(value))
            if attribute is not None:
                attributes[name] = attribute
    return Node(
        name="".join(texts[3]),
        operator="".join(texts[4]),
        domain="".join(texts[7]),
        inputs=tuple(texts[1]),
        outputs=tuple(texts[2]),
        attributes=attributes,
    )


def _attribute(message: memoryview) -> tuple[str, Attribute | None]:
    """An attribute's name and value; None if its value is of a kind that is not read."""
    name = ""
    attribute: Attribute | None = None
    integers: list[int] = []
    for number, value in fields(message):
        if number == 1:
            name = text(value)
        elif number == 2:
            attribute = float32(value)
        elif number == 3:
            attribute = signed(value)
        elif number == 4:
            attribute = str(content(value), "utf-8", "replace")
        elif number == 5:
            attribute = _tensor(content(value))
        elif number == 8:
            integers += signed_integers(value).tolist()
    return name, tuple(integers) if integers else attribute


def _tensor(message: memoryview) -> Tensor:
    parts: dict[int, list[Value]] = defaultdict(list)
    for number, value in fields(message):
        parts[number].append(value)
    code = signed(parts[2][-1]) if parts[2] else 0
    dtype = _DTYPES.get(code, f"type {code}")
    data = memoryview(b"")
    if parts[5] or parts[7]:  # varints: of the types up to int32, or of int64
        numbers = np.concatenate([signed_integers(value) for value in parts[5] + parts[7]])
        data = memoryview(_narrowed(numbers, dtype).tobytes())
    elif parts[4] or parts[9] or parts[10]:  # packed floats and doubles have the same bytes
        pieces = [content(value) for value in parts[4] + parts[9] + parts[10]]
        data = pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))
    entries = [dict(fields(content(value))) for value in parts[13]]
    external = {text(entry[1]): text(entry[2]) for entry in entries} if parts[14] == [1] else {}
    return Tensor(
        name="".join(text(value) for value in parts[8]),
        dtype=dtype,
        shape=tuple(int(dim) for value in parts[1] for dim in signed_integers(value)),
        data=data,
        external=external.get("location", ""),
        offset=int(external.get("offset", 0)),
        length=int(external["length"]) if "length" in external else None,
    )


def _narrowed(numbers: npt.NDArray[np.int64], dtype: str) -> npt.NDArray[np.generic]:
    """Numbers that a file holds as varints, in a tensor's own type; floats are held as bits."""
    bits = {"float16": "<u2", "bfloat16": "<u2"}
    return numbers.astype(bits.get(dtype) or np.dtype(_NUMPY.get(dtype, dtype)))
