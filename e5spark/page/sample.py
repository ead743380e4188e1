"""What a sample of vectors shows: cosines of random pairs, nearest neighbours, and a map."""

from typing import Any

import numpy as np
import numpy.typing as npt

_SEED = 20  # the same pairs and examples for the same sample
_PAIRS = 20_000
_BINS = 40
_EXAMPLES, _NEIGHBOURS = 6, 5

Matrix = npt.NDArray[np.float32]


def describe(
    vectors: Matrix,
    *,
    rows: npt.NDArray[np.int64] | None = None,
    groups: npt.NDArray[np.int64] | None = None,
) -> dict[str, Any]:
    """Returns what the report says of the vectors of one column, as JSON.

    Args:
        vectors: A sample; scores need not be normalised.  # (vectors, dim)
        rows: The row of the sample that has each vector; None: one after the other.  # (vectors,)
        groups: Vectors of one group, such as the windows of a text, are neither paired nor
            neighbours; None: each is a group of its own.  # (vectors,)
    """
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    usable = np.isfinite(norms) & (norms > 0)
    unit = (vectors[usable] / norms[usable, None]).astype(np.float32)
    order = np.arange(len(vectors))
    numbers = (order if groups is None else groups)[usable]
    positions = (order if rows is None else rows)[usable]
    return {
        "vectors": len(vectors),
        "unusable": int((~usable).sum()),
        "cosines": _cosines(unit, numbers),
        "map": _map(unit, positions),
        "examples": _examples(unit, numbers, positions),
    }


def _cosines(unit: Matrix, numbers: npt.NDArray[np.int64]) -> dict[str, Any] | None:
    """The histogram of the cosines of random pairs of different rows."""
    generator = np.random.default_rng(_SEED)
    if len(unit) * (len(unit) - 1) // 2 <= _PAIRS:
        left, right = np.triu_indices(len(unit), 1)
    else:
        left, right = generator.integers(0, len(unit), (2, _PAIRS))
    different = numbers[left] != numbers[right]
    left, right = left[different], right[different]
    if not len(left):
        return None
    cosines = np.clip(np.einsum("ij,ij->i", unit[left], unit[right]), -1, 1)
    lowest = np.floor(cosines.min() * 20) / 20
    # At least 0.4 wide, so that equal cosines are not drawn as a wide spread.
    edges = np.linspace(max(-1.0, min(lowest, 0.6)), 1.0, _BINS + 1)
    counts, _ = np.histogram(cosines, edges)
    return {
        "pairs": len(cosines),
        "mean": _rounded(cosines.mean()),
        "lowest": _rounded(cosines.min()),
        "highest": _rounded(cosines.max()),
        "edges": [_rounded(edge) for edge in edges],
        "counts": counts.tolist(),
    }


def _map(unit: Matrix, positions: npt.NDArray[np.int64]) -> dict[str, Any] | None:
    """The first two principal components, which take most of the variance."""
    if len(unit) < 3:
        return None
    centred = unit.astype(np.float64) - unit.mean(axis=0, dtype=np.float64)
    # The smaller of the two matrices of products: 0.2 s for 1,500 vectors of 1,024 components.
    if len(unit) < unit.shape[1]:
        values, vectors = np.linalg.eigh(centred @ centred.T)
        points = vectors * np.sqrt(np.maximum(values, 0))
    else:
        values, vectors = np.linalg.eigh(centred.T @ centred)
        points = centred @ vectors
    points, total = points[:, :-3:-1], max(float(values.sum()), 1e-12)
    if points.shape[1] < 2 or values[-1] <= 1e-9:
        return None  # all vectors are equal
    return {
        "rows": positions.tolist(),
        "x": [_rounded(x) for x in points[:, 0]],
        "y": [_rounded(y) for y in points[:, 1]],
        "variance": [_rounded(max(value, 0) / total) for value in values[:-3:-1]],
    }


def _examples(
    unit: Matrix, numbers: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]
) -> list[dict[str, Any]]:
    """A few rows, with the rows of the sample that are nearest to each."""
    if len(unit) < 2:
        return []
    generator = np.random.default_rng(_SEED)
    chosen = np.sort(generator.permutation(len(unit))[:_EXAMPLES])
    examples = []
    for index in chosen:
        cosines = unit @ unit[index]
        cosines[numbers == numbers[index]] = -np.inf
        order = np.argsort(-cosines, kind="stable")[:_NEIGHBOURS]
        nearest = [
            {"row": int(positions[other]), "cosine": _rounded(cosines[other])}
            for other in order
            if np.isfinite(cosines[other])
        ]
        if nearest:
            examples.append({"row": int(positions[index]), "neighbours": nearest})
    return examples


def _rounded(value: Any) -> float:  # noqa: ANN401  # any scalar of NumPy
    return round(float(value), 4)
