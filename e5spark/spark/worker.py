"""What runs on executors: Arrow batches of texts in, Arrow batches of vectors out.

The driver imports this module for its types and ships its functions by name.
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark import TaskContext

from e5spark import text
from e5spark.errors import ColumnError, OptionError
from e5spark.model import prompts
from e5spark.model.resolve import Plan
from e5spark.spark import results
from e5spark.spark.encoder_cache import encoder_for, isolated_encoder_for, spare_memory
from e5spark.spark.prefetch import prefetch
from e5spark.spark.tally import Tally, tally
from e5spark.spark.trace import trace

if TYPE_CHECKING:
    from e5spark.encoder import Encoder, Encoding
    from e5spark.encoder.isolated import IsolatedEncoder

# A sort window ends at this many bytes of text even if it has few rows: 10,000-row Arrow batches of
# long documents would otherwise be in memory, tokenised and sorted all at once.
_WINDOW_BYTES = 64 << 20
# Where memory is short a window ends earlier. Measured with texts of 20 KB, prefetch included: two
# windows take up to 30 bytes for each byte of a window, and up to 340 MB for the tokenizer's
# objects, which the first 4 MB of Japanese fill: up to 105 bytes for each byte.
_WINDOW_COST, _FIRST_COST, _TOKENIZER_BYTES = 30, 105, 340 << 20
_LEAST_WINDOW_BYTES = 1 << 18
# The first Arrow batch of a task is cut after 64 rows, 64 and 512 more: `show` and `limit` need the
# first rows only. PySpark buffers what a worker writes, so Spark gets the first window when the
# second is written, and the worker ends after the third, which it can no longer write.
_FIRST_ROWS = (64, 64, 512)


class RequestOptions(TypedDict, total=False):
    """Fields of ``Request`` that say how, and not what, is embedded."""

    figures: bool
    event: str
    isolated: bool
    quick_start: bool
    tally: str | None


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a UDF does with its arguments: text columns, then optional roles and instructions.

    Attributes:
        plan: The model.
        texts: The number of text columns, which come first.
        role: The role of every row; None if the argument after the texts holds it.
        instruction: The instruction of every row, if there is one.
        has_instructions: Whether the last argument holds instructions.
        figures: Whether the result has ``results.FIGURES`` of each vector.
        event: The trace event of a sort window; what is not a user's row has one of its own.
        isolated: Whether texts are encoded in a process of their own, because a worker has died.
        quick_start: Whether the first sort windows are small, for ``show`` and ``limit``, which
            need the first rows only.
        tally: The directory on the driver's machine where a task notes how far it has come.
    """

    plan: Plan
    texts: int
    role: str | None
    instruction: str | None = None
    has_instructions: bool = False
    figures: bool = False
    event: str = "window"
    isolated: bool = False
    quick_start: bool = True
    tally: str | None = None

    @property
    def arguments(self) -> int:
        """Returns the number of columns that the UDF takes."""
        return self.texts + (self.role is None) + self.has_instructions


def run(request: Request, batches: Iterable[tuple[pa.Array, ...]]) -> Iterator[list[pa.Array]]:
    """Yields the results of one sort window after another: an array for each text column.

    A sort window is wider than an Arrow batch: rows of several batches are sorted by length
    together, so output batches are longer than input batches. Spark requires only that rows come
    out in the order they went in. While the engine runs one window, a thread reads and
    tokenises the next: tokenizers and engines release Python's lock.

    A task that is tried again encodes its texts in a process of its own: the attempt before it may
    have died of one of them, which then ends in an error. Nothing of this touches a first attempt.

    Raises:
        ColumnError: If the arguments are too few, too many, or do not hold strings.
    """
    isolated = _is_isolated(request)
    encoder = (isolated_encoder_for if isolated else encoder_for)(request.plan)
    windows = _sort_windows(
        _check(request, batches),
        request.plan.spec.sort_window,
        window_bytes(spare_memory(request.plan, isolated=isolated)),
        first=_FIRST_ROWS if request.quick_start else (),
    )
    progress = tally(request.tally)
    for window in prefetch(windows, functools.partial(_tokenize, request, encoder, progress)):
        result = _encode(request, window)
        if progress is not None:
            progress.finish(window.rows)
        yield result


def window_bytes(spare: int | None) -> int:
    """Returns the bytes of text at which a sort window ends.

    Args:
        spare: The bytes that a worker may use beside its model; None if that is unknown.
    """
    if spare is None:
        return _WINDOW_BYTES
    affordable = max(spare // _FIRST_COST, (spare - _TOKENIZER_BYTES) // _WINDOW_COST)
    # A window ends with the part that reaches this number, and that part may be as large.
    return min(_WINDOW_BYTES, max(_LEAST_WINDOW_BYTES, affordable // 2))


def _is_isolated(request: Request) -> bool:
    context = TaskContext.get()
    is_retry = context is not None and context.attemptNumber() > 0
    return request.isolated or is_retry or request.plan.spec.text_deadline is not None


def prefixes(request: Request, columns: Sequence[pa.Array]) -> tuple[list[str], dict[int, str]]:
    """Returns the prefix of each row, and the message of each row with a wrong role or instruction.

    The prefix of such a row is empty.
    """
    table = request.plan.recipe.prompts
    rows = len(columns[0])
    by_row = iter(columns[request.texts :])
    if request.role is not None and not request.has_instructions:
        return [prompts.prefix(table, request.role, request.instruction)] * rows, {}
    roles = [request.role] * rows if request.role is not None else text.decode(next(by_row))
    instructions = (
        text.decode(next(by_row)) if request.has_instructions else [request.instruction] * rows
    )
    result, errors = [], {}
    for row, (role, instruction) in enumerate(zip(roles, instructions, strict=True)):
        try:
            result.append(prompts.prefix(table, role or "", instruction))
        except OptionError as error:
            result.append("")
            errors[row] = str(error)
    return result, errors


def _check(
    request: Request, batches: Iterable[tuple[pa.Array, ...]]
) -> Iterator[tuple[pa.Array, ...]]:
    """The batches, once checked: in SQL the UDF can be called with any columns."""
    for batch in batches:
        if len(batch) != request.arguments:
            raise ColumnError(
                f"The embedding UDF was called with {len(batch)} arguments; it takes "
                f"{request.arguments}. To embed several columns, call it once for each, or use "
                "embed."
            )
        for column in batch:
            if not _is_text(column.type):
                raise ColumnError(
                    f"The embedding UDF was called with a column of type {column.type}; it takes "
                    "strings. Cast the column first: CAST(... AS STRING) in SQL, .cast('string') "
                    "in Python."
                )
        yield batch


def _is_text(kind: pa.DataType) -> bool:
    checks = ("is_string", "is_large_string", "is_binary", "is_large_binary", "is_null")
    return any(getattr(pa.types, check)(kind) for check in checks)


def _sort_windows(
    batches: Iterable[tuple[pa.Array, ...]], rows: int, limit: int, first: Sequence[int]
) -> Iterator[list[tuple[pa.Array, ...]]]:
    """Groups batches into windows of about ``rows`` rows, or ``limit`` bytes if that is less.

    The first batch begins with windows of ``first`` rows.
    """
    batches = iter(batches)
    rest = next(batches, None)
    if rest is None:
        return
    for size in first:
        if size < min(rows, len(rest[0])):
            yield [tuple(column.slice(0, size) for column in rest)]
            rest = tuple(column.slice(size) for column in rest)
    window: list[tuple[pa.Array, ...]] = []
    count = size = 0
    cut = functools.partial(_cut, limit=limit)
    for batch in itertools.chain.from_iterable(map(cut, itertools.chain([rest], batches))):
        window.append(batch)
        count += len(batch[0])
        size += sum(column.nbytes for column in batch)
        if count >= rows or size >= limit:
            yield window
            window, count, size = [], 0, 0
    if window:
        yield window


def _cut(batch: tuple[pa.Array, ...], limit: int) -> Iterator[tuple[pa.Array, ...]]:
    """A batch in parts that fit a window: Spark limits its rows, and not always its bytes."""
    rows = len(batch[0])
    if rows < 2 or sum(column.nbytes for column in batch) <= limit:
        yield batch
        return
    for begin, size in ((0, rows // 2), (rows // 2, rows - rows // 2)):
        yield from _cut(tuple(column.slice(begin, size) for column in batch), limit)


@dataclass(frozen=True, kw_only=True)
class WindowTexts:
    """The texts of a sort window: row r of text column c is text c * rows + r.

    Attributes:
        rows: Rows of the table in the window.
        status: Status of each text before it is encoded.  # (texts,)
        errors: Number of a text to the message that says why it is not encoded.
        encoded: The numbers of the texts to encode, ascending.  # (encoded texts,)
        texts: Those texts.  # (encoded texts,)
        prefixes: Their prefixes.  # (encoded texts,)
    """

    rows: int
    status: list[text.Status]
    errors: dict[int, str]
    encoded: npt.NDArray[np.int64]
    texts: list[str]
    prefixes: list[str]


def read_window(request: Request, window: Sequence[tuple[pa.Array, ...]]) -> WindowTexts:
    """Returns the texts of the Arrow batches of a sort window, with the status of each."""
    columns = [pa.chunked_array(column).combine_chunks() for column in zip(*window, strict=True)]
    row_prefixes, errors = prefixes(request, columns)
    rows = len(columns[0])
    texts = [value for column in columns[: request.texts] for value in text.decode(column)]
    status = text.statuses(texts)
    messages = _too_long(texts, status, request.plan.spec.max_characters)
    for row, message in errors.items():
        messages |= dict.fromkeys(range(row, len(texts), rows), message)
    for number in messages:
        status[number] = "error"
    encoded = [number for number, value in enumerate(status) if value == "ok"]
    return WindowTexts(
        rows=rows,
        status=status,
        errors=messages,
        encoded=np.array(encoded, dtype=np.int64),
        texts=[texts[number] or "" for number in encoded],
        prefixes=[row_prefixes[number % rows] for number in encoded],
    )


@dataclass(frozen=True, kw_only=True)
class _TokenizedWindow:
    """A sort window whose texts are tokenised; see ``WindowTexts``.

    Attributes:
        rows: As there.
        status: As there.
        errors: As there.
        encoded: As there.
        encode: Encodes those texts.
        seconds: The time that tokenising took.
    """

    rows: int
    status: list[text.Status]
    errors: dict[int, str]
    encoded: npt.NDArray[np.int64]
    encode: "Callable[[], Encoding]"
    seconds: float


def _tokenize(
    request: Request,
    encoder: "Encoder | IsolatedEncoder",
    progress: Tally | None,
    window: Sequence[tuple[pa.Array, ...]],
) -> _TokenizedWindow:
    started = time.perf_counter()
    read = read_window(request, window)
    encode = encoder.prepare(
        read.texts, read.prefixes, None if progress is None else progress.window(read.rows)
    )
    return _TokenizedWindow(
        rows=read.rows,
        status=read.status,
        errors=read.errors,
        encoded=read.encoded,
        encode=encode,
        seconds=time.perf_counter() - started,
    )


def _too_long(
    texts: Sequence[str | None], status: Sequence[text.Status], limit: int | None
) -> dict[int, str]:
    """The texts beyond the limit, with a message for each."""
    if limit is None:
        return {}
    return {
        number: f"The text has {len(value)} characters, more than max_characters, {limit}."
        for number, value in enumerate(texts)
        if value is not None and len(value) > limit and status[number] == "ok"
    }


def _encode(request: Request, window: _TokenizedWindow) -> list[pa.Array]:
    started = time.perf_counter()
    encoding = window.encode()
    rows, columns = window.rows, range(request.texts)
    result = results.result_array(
        encoding,
        encoded=window.encoded,
        status=window.status,
        errors=window.errors,
        plan=request.plan,
        figures=request.figures,
    )
    trace(
        request.event,
        rows=len(window.encoded),
        tokens=int(encoding.n_tokens.sum()),
        tokenize_seconds=window.seconds,
        seconds=time.perf_counter() - started,
    )
    return [result.slice(rows * c, rows) for c in columns]
