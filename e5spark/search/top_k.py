"""The k best rows of a corpus for each query: blocked products, exact scores, bounded memory.

A score is the product of two vectors, summed in float64 in the order of the components and rounded
to float32, so it depends on the two vectors alone. The sums of a float32 matrix product depend on
the shapes of its blocks in their last bits: the product only chooses candidates, within a bound of
its rounding error, and the candidates are scored again.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from e5spark.errors import InputError

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.intp]

# One block of scores: 16 MB, and few enough rows of each side to stay in a CPU's caches.
_QUERY_ROWS, _CORPUS_ROWS = 1024, 4096
# Candidates that are scored at a time: 1.5 MB of float64 products, which fit a cache.
_SCORED_ROWS = 512
# Candidates are merged when there are this many, or as many as the best rows.
_PENDING_ROWS = 16_384


def exact_scores(left: Floats, right: Floats, pairs: tuple[Rows, Rows]) -> Floats:
    """Returns the product of each pair of rows, summed in float64 and rounded to float32.

    Args:
        left: Vectors.  # (rows, dim)
        right: Vectors.  # (rows, dim)
        pairs: Numbers of rows of ``left`` and of ``right``.  # (pairs,) each
    """
    rows, others = pairs
    scores = np.empty(len(rows), dtype=np.float32)
    for start in range(0, len(rows), _SCORED_ROWS):
        part = slice(start, start + _SCORED_ROWS)
        products = left[rows[part]].astype(np.float64)
        products *= right[others[part]]
        scores[part] = products.sum(axis=1)
    return scores + np.float32(0)  # no negative zeros, which Spark and numpy order differently


def rounding_error(left: Floats, right: Floats) -> float:
    """Returns a bound of the difference between a float32 matrix product and the exact scores.

    Higham, Accuracy and Stability of Numerical Algorithms, 3.5: ``dim * u / (1 - dim * u)`` times
    the norms; the 8 covers the rounding of the exact score and of the bound itself.

    Raises:
        InputError: If a component is not finite.
    """
    norms = [float(np.einsum("ij,ij->i", side, side).max(initial=0)) for side in (left, right)]
    if not np.isfinite(norms).all():
        raise InputError(
            "A vector has a component that is not finite, or too large for a product; vectors of "
            "e5spark have unit length. Filter such rows out, or embed them again."
        )
    return float((left.shape[1] + 8) * 2.0**-24 * 1.001 * np.sqrt(norms[0] * norms[1]))


def blocks(left: Floats, right: Floats) -> Iterator[tuple[slice, slice, Floats]]:
    """Yields the scores of rows of ``left`` and ``right`` as blocks of a float32 matrix product.

    A block is valid until the next one is made.
    """
    buffer = np.empty(_QUERY_ROWS * _CORPUS_ROWS, dtype=np.float32)
    for start in range(0, len(right), _CORPUS_ROWS):
        columns = slice(start, min(start + _CORPUS_ROWS, len(right)))
        for first in range(0, len(left), _QUERY_ROWS):
            rows = slice(first, min(first + _QUERY_ROWS, len(left)))
            shape = rows.stop - rows.start, columns.stop - columns.start
            scores = buffer[: shape[0] * shape[1]].reshape(shape)
            np.matmul(left[rows], right[columns].T, out=scores)
            yield rows, columns, scores


class TopK:
    """The k best rows of a corpus for each query, of the blocks of the corpus seen so far.

    Higher scores come first, then lower ids. Memory is bounded by ``queries * k``, whatever the
    corpus.

    Args:
        queries: float32.  # (queries, dim)
        k: Rows for each query.
        ids: The type of the corpus' ids, which pyarrow can sort.
    """

    def __init__(self, queries: Floats, k: int, ids: pa.DataType) -> None:
        self._queries, self._k = queries, k
        self._floor = np.full(len(queries), -np.inf, dtype=np.float32)
        self._query = np.empty(0, dtype=np.intp)
        self._score = np.empty(0, dtype=np.float32)
        self._ids = pa.array([], ids)
        self._pending: list[tuple[Rows, Floats, pa.Array]] = []

    def add(self, vectors: Floats, ids: pa.Array) -> None:
        """Takes rows of the corpus: their vectors and ids.

        Raises:
            InputError: If a component is not finite.
        """
        error = rounding_error(self._queries, vectors)
        for rows, columns, scores in blocks(self._queries, vectors):
            query, row = self._candidates(rows, scores, error)
            if not len(query):
                continue
            if len(query) > max(_PENDING_ROWS, 2 * self._k * scores.shape[0]):
                # A corpus with the same text in thousands of rows: all of them are candidates.
                usable = first_of_equals(vectors[columns], ids[columns], self._k)[row]
                query, row = query[usable], row[usable]
            for start in range(0, len(query), _PENDING_ROWS):
                part = slice(start, start + _PENDING_ROWS)
                self._score_candidates(
                    vectors, ids, (query[part] + rows.start, row[part] + columns.start)
                )

    def result(self) -> tuple[Rows, pa.Array, Floats]:
        """Returns query, id and score of the best rows, ordered by query and rank."""
        self._merge(final=True)
        return self._query, self._ids, self._score

    def _candidates(self, rows: slice, scores: Floats, error: float) -> tuple[Rows, Rows]:
        """The positions in a block of scores that may be among the best."""
        count = scores.shape[1]
        floor = self._floor[rows] - np.float32(error)
        if count > self._k and np.isneginf(floor).any():
            # k rows of the block are better than what is left out here.
            best = np.partition(scores, count - self._k, axis=1)[:, count - self._k]
            floor = np.maximum(floor, best - np.float32(2 * error))
        return positions(scores >= floor[:, None])

    def _score_candidates(self, vectors: Floats, ids: pa.Array, pairs: tuple[Rows, Rows]) -> None:
        query, row = pairs
        exact = exact_scores(self._queries, vectors, pairs)
        self._pending.append((query, exact, ids.take(pa.array(row))))
        if self._pending_rows() >= max(_PENDING_ROWS, len(self._score)):
            self._merge()

    def _pending_rows(self) -> int:
        return sum(len(query) for query, _, _ in self._pending)

    def _merge(self, *, final: bool = False) -> None:
        if self._pending:
            queries, scores, ids = zip(*self._pending, strict=True)
            self._pending = []
            self._query = np.concatenate([self._query, *queries])
            self._score = np.concatenate([self._score, *scores])
            self._ids = pa.concat_arrays([self._ids, *ids])
        self._select(np.lexsort((-self._score, self._query)))
        place = _places(self._query)
        last = np.flatnonzero(place == self._k - 1)
        self._floor[self._query[last]] = self._score[last]
        # Rows that are equal to the last one are kept: which of them stay is up to their ids.
        self._select(np.flatnonzero(self._score >= self._floor[self._query]))
        if final or len(self._score) > 2 * self._k * len(self._queries):
            order = np.lexsort((ranks(self._ids), -self._score, self._query))
            self._select(order)
            self._select(np.flatnonzero(_places(self._query) < self._k))

    def _select(self, rows: Rows) -> None:
        self._query, self._score = self._query[rows], self._score[rows]
        self._ids = self._ids.take(pa.array(rows))


def first_of_equals(vectors: Floats, ids: pa.Array, k: int) -> npt.NDArray[np.bool_]:
    """Returns which rows are among the ``k`` of the lowest ids that have their vector.

    No other row can be among the best ``k`` of any query, because rows of equal score are ranked by
    their ids.

    Args:
        vectors: Vectors.  # (rows, dim)
        ids: Their ids.
        k: Rows to keep of each vector.
    """
    contiguous = np.ascontiguousarray(vectors)
    row_bytes = contiguous.view(np.dtype((np.void, contiguous.strides[0]))).ravel()
    _, group = np.unique(row_bytes, return_inverse=True)
    order = np.lexsort((ranks(ids), group))
    is_first = np.zeros(len(vectors), dtype=np.bool_)
    is_first[order[_places(group[order]) < k]] = True
    return is_first


def positions(mask: npt.NDArray[np.bool_]) -> tuple[Rows, Rows]:
    """Returns the row and column of each true element; looks at 8 elements at a time."""
    if mask.shape[1] % 8:
        rows, columns = np.nonzero(mask)
        return rows, columns
    words = np.flatnonzero(mask.reshape(-1).view(np.uint64))
    word, byte = np.nonzero(mask.reshape(-1, 8)[words])
    flat = words[word] * 8 + byte
    rows = flat // mask.shape[1]
    return rows, flat - rows * mask.shape[1]


def _places(query: Rows) -> Rows:
    """The position of each row among those of its query, from 0; equal queries stand together."""
    starts = np.flatnonzero(np.append(True, query[1:] != query[:-1])) if len(query) else query
    sizes = np.diff(np.append(starts, len(query)))
    return np.arange(len(query)) - np.repeat(starts, sizes)


def ranks(ids: pa.Array) -> npt.NDArray[np.int64]:
    """Returns numbers that are ordered as the ids are."""
    ranks: npt.NDArray[np.int64] = pc.rank(ids, tiebreaker="dense").to_numpy().astype(np.int64)
    return ranks
