"""The weights of a checkpoint, checked by their headers: no tensor is read, no engine loaded."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e5spark.errors import ModelError
from e5spark.model.architecture import ModelConfig

_POINTER = b"version https://git-lfs"
# The limit of the safetensors library.
_LARGEST_HEADER = 100_000_000

Shape = tuple[int, ...]


def check_weights(directory: Path, names: Iterable[str], config: ModelConfig) -> None:
    """Raises unless the weight files are complete and hold each tensor of the architecture.

    Args:
        directory: The checkpoint's directory.
        names: Its weight files.
        config: Its config.json, which decides the shapes.

    Raises:
        ModelError: If a file is damaged, or a tensor is missing or has another shape.
    """
    shapes: dict[str, Shape] = {}
    origins: dict[str, str] = {}
    for name in names:
        for tensor, entry in read_entries(directory / name).items():
            shapes[canonical_name(tensor, config)] = entry.shape
            origins[canonical_name(tensor, config)] = name
    expected = dict(config.tensors())
    missing = [tensor for tensor in expected if tensor not in shapes]
    if missing:
        raise ModelError(
            f"{directory} lacks {len(missing)} weights of its architecture, {missing[0]} among "
            f"them; config.json needs {len(expected)}. transformers would fill them with random "
            "numbers. Fetch the checkpoint again."
        )
    for tensor, shape in expected.items():
        if shapes[tensor] != shape:
            raise ModelError(
                f"{directory / origins[tensor]} has {tensor} of shape {shapes[tensor]}, but "
                f"config.json needs {shape}: the two files belong to different models. Fetch both "
                "from the same checkpoint."
            )


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """A tensor of a safetensors file.

    Attributes:
        dtype: Its type by the format's name, such as ``F32``.
        shape: Its dims.
        start: The first byte of its values in the file.
        end: The byte after the last one of its values.
    """

    dtype: str
    shape: Shape
    start: int
    end: int


def read_entries(path: Path) -> dict[str, TensorEntry]:
    """Returns the tensors of a safetensors file by name, read from the header alone.

    Raises:
        ModelError: If the file is empty, truncated, or not safetensors.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        beginning = file.read(len(_POINTER))
        if beginning == _POINTER:
            raise ModelError(
                f"{path} is a Git LFS pointer ({size} bytes), not the weights; run git lfs pull "
                f"in {path.parent}, or fetch the checkpoint again."
            )
        length = int.from_bytes(beginning[:8], "little")
        file.seek(8)
        if size < 8 or length > min(size - 8, _LARGEST_HEADER):
            raise ModelError(_incomplete(path, size, "no complete header"))
        content = file.read(length)
    try:
        header: dict[str, Any] = json.loads(content)
        header.pop("__metadata__", None)
        entries = {name: _entry(entry, 8 + length) for name, entry in header.items()}
        end = max((entry.end for entry in entries.values()), default=8 + length)
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        RecursionError,
        OverflowError,
    ) as error:
        reason = f"a header that cannot be read ({type(error).__name__})"
        raise ModelError(_incomplete(path, size, reason)) from error
    if end != size:
        raise ModelError(_incomplete(path, size, f"a header that describes {end}"))
    return entries


def _entry(entry: Mapping[str, Any], base: int) -> TensorEntry:
    start, end = map(int, entry["data_offsets"])
    shape = tuple(map(int, entry["shape"]))
    return TensorEntry(dtype=str(entry["dtype"]), shape=shape, start=base + start, end=base + end)


def _incomplete(path: Path, size: int, reason: str) -> str:
    return (
        f"{path} is not a complete safetensors file: it has {size} bytes and {reason}. "
        "Fetch it again."
    )


def canonical_name(tensor: str, config: ModelConfig) -> str:
    """Returns the name under which transformers loads a tensor of an older release or with a head.

    Args:
        tensor: Its name in a weight file.
        config: The checkpoint's config.json.
    """
    name = tensor.removeprefix(config.architecture.prefix)
    for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        name = name.replace(old, new)
    return name
