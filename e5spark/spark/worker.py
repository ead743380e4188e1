"""What runs on executors: Arrow batches of texts in, Arrow batches of vectors out.

The driver imports this module for its types, and ships its functions by name.
"""

import functools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from e5spark import text
from e5spark.errors import OptionError
from e5spark.model import prompts
from e5spark.model.resolve import Plan
from e5spark.spark import results
from e5spark.spark.encoder_cache import encoder_of
from e5spark.spark.prefetch import prefetch
from e5spark.spark.trace import trace

if TYPE_CHECKING:
    from e5spark.encoder import Encoder
    from e5spark.encoder.sort_window import SortWindow

# A window closes at this many bytes of text even if it has few rows: 10,000-row Arrow batches of
# long documents would otherwise be held, tokenised and sorted all at once.
_WINDOW_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Request:
    """What one UDF does to its arguments: ``texts`` text columns, then a role, an instruction.

    Attributes:
        plan: The model.
        texts: How many text columns come first.
        role: The role of every row; None if the next argument column holds it.
        instruction: The instruction of every row, if there is one.
        has_instructions: Whether the last argument column holds instructions.
    """

    plan: Plan
    texts: int
    role: str | None
    instruction: str | None = None
    has_instructions: bool = False


def run(request: Request, batches: Iterable[tuple[pa.Array, ...]]) -> Iterator[list[pa.Array]]:
    """Yields, for each window of batches, one result array for each text column.

    The window is wider than the transport batch: rows of several Arrow batches are sorted by
    length together, so output batches are longer than input batches. Spark asks only that the
    rows come out in the order they went in. While the engine runs one window, a thread reads and
    tokenises the next: tokenizers let go of Python's lock, and engines do.
    """
    encoder = encoder_of(request.plan)
    windows = _windows(batches, request.plan.spec.sort_window)
    for texts in prefetch(windows, functools.partial(_tokenized, request, encoder)):
        yield _embedded(request, encoder, texts)


def prefixes(request: Request, columns: Sequence[pa.Array]) -> tuple[list[str], dict[int, str]]:
    """Returns the prefix of each row, and why for each row whose role or instruction is wrong."""
    table = request.plan.recipe.prompts
    rows = len(columns[0])
    extra = iter(columns[request.texts :])
    if request.role is not None and not request.has_instructions:
        return [prompts.prefix(table, request.role, request.instruction)] * rows, {}
    roles = [request.role] * rows if request.role is not None else text.decode(next(extra))
    instructions = (
        text.decode(next(extra)) if request.has_instructions else [request.instruction] * rows
    )
    found, refused = [], {}
    for row, (role, instruction) in enumerate(zip(roles, instructions, strict=True)):
        try:
            found.append(prompts.prefix(table, role or "", instruction))
        except OptionError as error:
            found.append("")
            refused[row] = str(error)
    return found, refused


def _windows(
    batches: Iterable[tuple[pa.Array, ...]], rows: int
) -> Iterator[list[tuple[pa.Array, ...]]]:
    window: list[tuple[pa.Array, ...]] = []
    count = size = 0
    for batch in batches:
        window.append(batch)
        count += len(batch[0])
        size += sum(column.nbytes for column in batch)
        if count >= rows or size >= _WINDOW_BYTES:
            yield window
            window, count, size = [], 0, 0
    if window:
        yield window


@dataclass(frozen=True, kw_only=True)
class _Texts:
    """The texts of a window: row r of text column c is text c * rows + r.

    Attributes:
        rows: Of the table.
        status: Of each text, before it is encoded.
        refused: Row to why its role or instruction is wrong.
        wanted: Which texts are encoded.
        tokens: Theirs.
        seconds: What this took.
    """

    rows: int
    status: list[text.Status]
    refused: dict[int, str]
    wanted: npt.NDArray[np.int64]
    tokens: "SortWindow"
    seconds: float


def _tokenized(
    request: Request, encoder: "Encoder", window: Sequence[tuple[pa.Array, ...]]
) -> _Texts:
    started = time.perf_counter()
    columns = [pa.chunked_array(column).combine_chunks() for column in zip(*window, strict=True)]
    before, refused = prefixes(request, columns)
    rows = len(columns[0])
    texts = [each for column in columns[: request.texts] for each in text.decode(column)]
    status = text.statuses(texts)
    for row in refused:
        status[row::rows] = ["error"] * request.texts
    wanted = [row for row, each in enumerate(status) if each == "ok"]
    tokens = encoder.tokenize(
        [texts[row] or "" for row in wanted], [before[row % rows] for row in wanted]
    )
    return _Texts(
        rows=rows,
        status=status,
        refused=refused,
        wanted=np.array(wanted, dtype=np.int64),
        tokens=tokens,
        seconds=time.perf_counter() - started,
    )


def _embedded(request: Request, encoder: "Encoder", texts: _Texts) -> list[pa.Array]:
    started = time.perf_counter()
    found = encoder.encode_tokens(texts.tokens)
    rows, columns = texts.rows, range(request.texts)
    whole = results.table(
        found,
        wanted=texts.wanted,
        status=texts.status,
        errors={row + rows * c: why for row, why in texts.refused.items() for c in columns},
        plan=request.plan,
    )
    trace(
        "window",
        rows=len(texts.wanted),
        tokens=int(found.n_tokens.sum()),
        tokenize_seconds=texts.seconds,
        seconds=time.perf_counter() - started,
    )
    return [whole.slice(rows * c, rows) for c in columns]
