"""How long an encoder takes for a sort window, measured on some of its forward passes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from e5spark.encoder.batching import Indices, micro_batches, padded_width
from e5spark.encoder.encoder import Encoder, Encoding
from e5spark.encoder.sort_window import SortWindow
from e5spark.encoder.tokenizer import Tokens

# Forward passes that are timed together. Of 4,096 passages there are 650 in fp32: every 40th of
# them, in the order of their lengths, has short and long rows as the whole window has them.
_PASSES = 16


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What the encoding of one sort window takes, without its tokenizing.

    Attributes:
        seconds: For all of its forward passes, of shapes that the engine has prepared.
        shape_seconds: What the engine needs to prepare the shapes of its passes, once in a worker.
        measured: The share of the window that was encoded, twice, to know that.
        spread: Relative standard deviation of the speed between the parts that were timed; 0 for
            one part.
    """

    seconds: float
    shape_seconds: float
    measured: float
    spread: float


def measure(encoder: Encoder, window: SortWindow, *, seconds: float) -> tuple[Speed, Encoding]:
    """Returns the speed of a sort window, and the encoding of a part of it.

    Every part has the passes that the whole window would have, cut from the same order. It is
    encoded twice: what the first time takes longer is the preparation of new shapes.

    Args:
        encoder: The encoder.
        window: A tokenised sort window with at least one text.
        seconds: After this time no further part begins; one part is measured at least.
    """
    engine, lengths = encoder.engine, window.tokens.lengths
    batches = micro_batches(lengths, encoder.token_budget, packed=engine.packed, step=engine.step)
    widths = [padded_width(int(lengths[rows].max()), engine.step) for rows in batches]
    weights = [
        int(lengths[rows].sum()) if engine.packed else len(rows) * width
        for rows, width in zip(batches, widths, strict=True)
    ]
    stride = max(1, len(batches) // _PASSES)
    timings: list[tuple[float, float, int, int]] = []  # first, second, weight, shapes
    encoding: Encoding | None = None
    started = time.perf_counter()
    for begin in np.random.default_rng(0).permutation(stride):
        passes = range(int(begin), len(batches), stride)
        part = _part(window, [batches[number] for number in passes])
        first, encoding = _timed(encoder, part)
        second, _ = _timed(encoder, part)
        weight = sum(weights[number] for number in passes)
        timings.append((first, second, weight, len({widths[number] for number in passes})))
        if time.perf_counter() - started >= seconds:
            break
    assert encoding is not None
    firsts, seconds_each, parts, shapes = map(np.array, zip(*timings, strict=True))
    rates = seconds_each / parts
    new_shape = max(0.0, float((firsts - seconds_each).sum())) / int(shapes.sum())
    speed = Speed(
        seconds=float(seconds_each.sum() / parts.sum()) * sum(weights),
        shape_seconds=new_shape * len(set(widths)),
        measured=float(parts.sum() / sum(weights)),
        spread=float(rates.std(ddof=1) / rates.mean()) if len(rates) > 1 else 0.0,
    )
    return speed, encoding


def _timed(encoder: Encoder, part: SortWindow) -> tuple[float, Encoding]:
    started = time.perf_counter()
    encoding = encoder.encode_tokens(part)
    return time.perf_counter() - started, encoding


def _part(window: SortWindow, batches: Sequence[Indices]) -> SortWindow:
    """The rows of some batches as a sort window, in which each row is a text of its own."""
    rows = np.concatenate(batches)
    batch = window.tokens.batch(rows)
    offsets = np.concatenate([[0], np.cumsum(batch.lengths)])
    return SortWindow(
        tokens=Tokens(ids=batch.ids, offsets=offsets, n_tokens=window.tokens.n_tokens[rows]),
        owner=np.arange(len(rows), dtype=np.int32),
        windows=[window.windows[row] for row in rows] if window.windows else [],
        already_prompted=np.zeros(len(rows), dtype=bool),
        refused={},
        inverse=np.arange(len(rows)),
    )
