"""Vectors in smaller types, with ranges that come from the corpus and never from one batch.

The results equal sentence-transformers' ``quantize_embeddings``, bit for bit.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from e5spark.errors import OptionError
from e5spark.model.spec import OutputType

_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The range of each component of a corpus' vectors.

    Attributes:
        lowest: Smallest value of each component.  # (dim,)
        highest: Largest value of each component.  # (dim,)
        rows: Vectors that the ranges were computed from.
        fingerprint: Digest of the float32 vectors that the ranges belong to.
    """

    lowest: tuple[float, ...]
    highest: tuple[float, ...]
    rows: int
    fingerprint: str

    @property
    def ranges(self) -> npt.NDArray[np.float32]:
        """Returns the ranges in the form of sentence-transformers: float32, (2, dim)."""
        return np.array([self.lowest, self.highest], dtype=np.float32)

    def save(self, path: Path) -> None:
        """Writes the ranges as JSON, with a format version.

        Raises:
            OptionError: If the file cannot be written.
        """
        document = {"e5spark_calibration": _FORMAT, **vars(self)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(document) + "\n", "utf-8")
        except OSError as error:
            raise OptionError(f"The calibration {path} cannot be written: {error}.") from error


def load_calibration(path: str) -> Calibration:
    """Returns the ranges that a calibrate job stored, in this format or an older one.

    Raises:
        OptionError: If the file cannot be read, is damaged, or a later release wrote it.
    """
    try:
        document: dict[str, Any] = json.loads(Path(path).read_text("utf-8"))
        number = document.pop("e5spark_calibration")
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"its format is {number!r}")
        if number > _FORMAT:
            raise OptionError(
                f"The calibration {path} has format {number}; this e5spark reads formats up to "
                f"{_FORMAT}. Install the release that wrote it, or make it again with e5spark "
                "calibrate JOB.toml --to FILE."
            )
        return _calibration(document)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        OverflowError,
    ) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(
            f"The calibration {path} cannot be read ({type(error).__name__}: {error}); make it "
            "again with e5spark calibrate JOB.toml --to FILE."
        ) from error


def _calibration(document: dict[str, Any]) -> Calibration:
    lowest, highest = tuple(document.pop("lowest")), tuple(document.pop("highest"))
    calibration = Calibration(lowest=lowest, highest=highest, **document)
    ranges = calibration.ranges
    if ranges.ndim != 2 or not (ranges[0] <= ranges[1]).all():
        raise ValueError("its ranges are not pairs of numbers, the smaller one in lowest")
    if not isinstance(calibration.fingerprint, str):
        raise TypeError(f"its fingerprint is {calibration.fingerprint!r}")
    return calibration


def to_output_type(
    vectors: npt.NDArray[np.float32],
    output_type: OutputType,
    ranges: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[Any]:
    """Returns the vectors in an output type, in their order: one row for each vector.

    Args:
        vectors: float32.  # (rows, dim)
        output_type: ``float32`` and ``float16`` keep the values; ``int8`` and ``uint8`` divide
            the range of each component into 255 steps; ``binary`` and ``ubinary`` keep the signs,
            8 in a byte (``binary`` is the same byte minus 128, as int8).
        ranges: Smallest and largest value of each component, for int8 and uint8.  # (2, dim)

    Raises:
        OptionError: If the output type is int8 or uint8, and there are no ranges.
    """
    if output_type == "float32":
        return vectors
    if output_type == "float16":
        return vectors.astype("<f2")
    if output_type in ("binary", "ubinary"):
        packed = np.packbits(vectors > 0, axis=-1)
        return packed if output_type == "ubinary" else (packed ^ 0x80).view(np.int8)
    if ranges is None:
        raise OptionError(
            f"output_type {output_type!r} needs the ranges of the whole corpus; make them with "
            "e5spark calibrate JOB.toml --to FILE, and set calibration=FILE."
        )
    steps = (ranges[1] - ranges[0]) / 255
    steps = np.where(steps == 0, 1, steps)
    levels: npt.NDArray[np.float32] = np.clip(np.floor((vectors - ranges[0]) / steps), 0, 255)
    if output_type == "uint8":
        return levels.astype(np.uint8)
    return (levels - 128).astype(np.int8)


def vector_bytes(dim: int, output_type: OutputType) -> int:
    """Returns the bytes of a vector with this many components."""
    zeros = np.zeros((2, dim), dtype=np.float32)
    return to_output_type(zeros[:1], output_type, zeros).nbytes
