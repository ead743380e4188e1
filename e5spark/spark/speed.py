"""The tokens of a sample and the speed of its model, counted and measured in tasks on executors."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_type
from pyspark.sql.types import DataType

from e5spark.model.resolve import Plan
from e5spark.names import RESERVED, quoted
from e5spark.spark.columns import TextColumns
from e5spark.spark.device import decide_device
from e5spark.spark.embedding import udf_call
from e5spark.spark.encoder_cache import encoder_for, spare_memory
from e5spark.spark.results import vectors_array
from e5spark.spark.trace import trace
from e5spark.spark.worker import Request, WindowTexts, read_window, window_bytes

if TYPE_CHECKING:
    from e5spark.encoder import Encoder, Encoding

# A window of long texts ends here, for 4 s of tokenizing.
_WINDOW_BYTES = 16 << 20
# Rows whose other columns are compressed, to know their size in a file.
_STORED_ROWS = 512
_ROW = f"{RESERVED}_row"
_CODECS = {"zstd", "snappy", "gzip", "lz4", "brotli", "none"}
_RESULT = "figures string, tokens array<bigint>, lost array<bigint>, windows array<bigint>"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one task has counted and measured on the texts of one sort window.

    Attributes:
        texts: Text columns; text r of column c is number c * rows + r.
        rows: Rows of the window.
        statuses: Texts by status, before any is encoded.
        truncated: Texts, or windows of split texts, that lose tokens.
        already_prompted: Texts that begin with a prompt.
        tokens: Tokens of each text, its prompt included; 0 if it is not encoded.  # (texts * rows,)
        lost: Tokens of them that are cut.  # (texts * rows,)
        windows: Rows of the output for each text.  # (texts * rows,)
        engine: The engine that the task has used.
        device: The device of the model, such as ``cpu``.
        load_seconds: What loading the model took; almost 0 if the worker had it already.
        tokenize_seconds: What tokenizing the window took.
        encode_seconds: What encoding the window takes.
        shape_seconds: What the engine needs, once, to prepare the shapes of its passes.
        measured: The share of the window that was encoded to know that.
        spread: Relative standard deviation of the speed between the parts that were timed.
        work_bytes: Bytes of a row of the work list in a compressed file; None if no row was
            compressed.
        row_bytes: The same for the columns that pass through to the output.
        vector_bytes: Bytes of a vector in a compressed file; None without one.
    """

    texts: int
    rows: int
    statuses: dict[str, int]
    truncated: int
    already_prompted: int
    tokens: npt.NDArray[np.int64]
    lost: npt.NDArray[np.int64]
    windows: npt.NDArray[np.int64]
    engine: str
    device: str
    load_seconds: float
    tokenize_seconds: float
    encode_seconds: float
    shape_seconds: float
    measured: float
    spread: float
    work_bytes: float | None
    row_bytes: float | None
    vector_bytes: float | None

    @property
    def window_seconds(self) -> float:
        """What the window takes: tokenizing runs beside the model, and on a CPU takes its cores."""
        if self.device == "cpu":
            return self.tokenize_seconds + self.encode_seconds
        return max(self.tokenize_seconds, self.encode_seconds)

    def by_row(self, values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Returns the sums over the text columns of a row.  # (rows,)."""
        sums: npt.NDArray[np.int64] = values.reshape(self.texts, self.rows).sum(axis=0)
        return sums


def measure_sample(
    sample: DataFrame,
    plan: Plan,
    texts: TextColumns,
    *,
    columns: list[str],
    tasks: int,
    seconds: float,
    codec: str,
) -> list[Measurement]:
    """Returns what each task has measured, in one Spark job; no row is written.

    Args:
        sample: Rows to embed, in any order.
        plan: The model.
        texts: The text columns.
        columns: The columns of the sample that pass through to the output.
        tasks: Tasks, each of which takes one sort window of the sample.
        seconds: How long each task measures, about.
        codec: The compression of the output's files.
    """
    request, arguments = udf_call(sample, plan, texts)
    names = [field.name for field in sample.schema if _has_arrow_type(field.dataType)]
    # By number, because Spark may spell them in another way than Arrow.
    kept = [number for number, name in enumerate(names) if name in columns]
    share = min(1.0, _STORED_ROWS / (tasks * plan.spec.sort_window))
    stored = F.struct(*(F.col(quoted(name)) for name in names))
    selected = sample.select(
        *(column.alias(f"{RESERVED}_{number}") for number, column in enumerate(arguments)),
        F.when(F.rand(seed=0) < share, stored).alias(_ROW),
    )
    files = _Files(codec=codec if codec in _CODECS else "snappy", kept=kept)
    task = partial(_measure, request, seconds, files)
    # At random, because a task takes one window of its rows: an input may be sorted by length.
    shuffled = selected.repartition(tasks).sortWithinPartitions(F.rand(seed=1))
    rows = shuffled.mapInArrow(task, _RESULT).collect()
    return [
        Measurement(
            **json.loads(row.figures),
            tokens=np.array(row.tokens, dtype=np.int64),
            lost=np.array(row.lost, dtype=np.int64),
            windows=np.array(row.windows, dtype=np.int64),
        )
        for row in rows
    ]


def _has_arrow_type(type_: DataType) -> bool:
    try:
        to_arrow_type(type_)
    except Exception:  # of several kinds, by version
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class _Files:
    """The files of a run: their compression, and the numbers of the columns that pass through."""

    codec: str
    kept: list[int]


def _measure(
    request: Request, seconds: float, files: _Files, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    started = time.perf_counter()
    encoder = encoder_for(request.plan)
    load_seconds = time.perf_counter() - started
    window, stored = _first_window(request, batches)
    if not window:
        return
    read = read_window(request, window)
    figures, arrays = _figures(request, encoder, read, seconds, files.codec)
    rows = pa.chunked_array(stored).combine_chunks().drop_null()
    document = {
        **figures,
        "engine": encoder.engine.name,
        "device": decide_device(request.plan.spec.device),
        "load_seconds": load_seconds,
        "work_bytes": _row_bytes(rows, range(rows.type.num_fields), files.codec),
        "row_bytes": _row_bytes(rows, files.kept, files.codec),
    }
    trace("dry_run", rows=read.rows, seconds=time.perf_counter() - started)
    yield pa.RecordBatch.from_arrays(
        [
            pa.array([json.dumps(document)]),
            *(pa.array([values]) for values in arrays),
        ],
        names=["figures", "tokens", "lost", "windows"],
    )


def _first_window(
    request: Request, batches: Iterator[pa.RecordBatch]
) -> tuple[list[tuple[pa.Array, ...]], list[pa.Array]]:
    """The texts of the first sort window, and the rows in which the other columns are."""
    limit = min(_WINDOW_BYTES, window_bytes(spare_memory(request.plan)))
    window: list[tuple[pa.Array, ...]] = []
    stored: list[pa.Array] = []
    count = size = 0
    for batch in batches:  # all of them: a task that stops early ends its worker
        left = request.plan.spec.sort_window - count
        if left <= 0 or size >= limit:
            continue
        columns = tuple(batch.column(number)[:left] for number in range(request.arguments))
        # A part of a batch of long texts.
        while len(columns[0]) > 1 and sum(column.nbytes for column in columns) > limit:
            columns = tuple(column[: len(column) // 2] for column in columns)
        window.append(columns)
        stored.append(batch.column(request.arguments)[: len(columns[0])])
        count += len(columns[0])
        size += sum(column.nbytes for column in columns)
    return window, stored


def _figures(
    request: Request, encoder: "Encoder", read: WindowTexts, seconds: float, codec: str
) -> tuple[dict[str, Any], list[npt.NDArray[np.int64]]]:
    from e5spark.encoder.speed import Speed, measure

    total = len(read.status)
    tokens, lost, windows = (np.zeros(total, dtype=np.int64) for _ in range(3))
    windows += 1
    speed = Speed(seconds=0.0, shape_seconds=0.0, measured=1.0, spread=0.0)
    truncated = already_prompted = 0
    encoding: Encoding | None = None
    started = time.perf_counter()
    tokenize_seconds = 0.0
    statuses = {name: read.status.count(name) for name in dict.fromkeys(read.status)}
    if len(read.encoded):
        tokenized = encoder.tokenize(read.texts, read.prefixes)
        tokenize_seconds = time.perf_counter() - started
        limit = request.plan.recipe.max_tokens
        counts = tokenized.tokens.n_tokens.astype(np.int64)
        over = np.maximum(counts - limit, 0)
        if request.plan.recipe.long_text != "truncate":
            over[:] = 0
        distinct = len(tokenized.already_prompted)
        sums = [
            np.bincount(tokenized.owner, weights=values, minlength=distinct).astype(np.int64)
            for values in (counts, over, np.ones_like(counts))
        ]
        for array, values in zip((tokens, lost, windows), sums, strict=True):
            array[read.encoded] = values[tokenized.inverse]
        if request.plan.recipe.long_text != "split":
            windows[:] = 1
        is_truncated = np.bincount(
            tokenized.owner, weights=tokenized.tokens.truncated, minlength=distinct
        )
        truncated = int(is_truncated[tokenized.inverse].sum())
        already_prompted = int(tokenized.already_prompted[tokenized.inverse].sum())
        speed, encoding = measure(encoder, tokenized, seconds=seconds)
    document = {
        "texts": request.texts,
        "rows": read.rows,
        "statuses": statuses,
        "truncated": truncated,
        "already_prompted": already_prompted,
        "tokenize_seconds": tokenize_seconds,
        "encode_seconds": speed.seconds,
        **{name: value for name, value in asdict(speed).items() if name != "seconds"},
        "vector_bytes": _vector_bytes(encoding, request.plan, codec),
    }
    return document, [tokens, lost, windows]


def _vector_bytes(encoding: "Encoding | None", plan: Plan, codec: str) -> float | None:
    if encoding is None:
        return None
    return _stored_bytes(vectors_array(encoding.vectors, plan), codec)


def _row_bytes(rows: pa.StructArray, columns: Sequence[int], codec: str) -> float | None:
    """The bytes of some columns of a row; None without a row."""
    if not len(rows):
        return None
    return sum(_stored_bytes(rows.field(n), codec, dictionary=True) for n in columns)


def _stored_bytes(values: pa.Array, codec: str, *, dictionary: bool = False) -> float:
    """The bytes of a value in a Parquet file, without those of the file itself."""
    sizes = []
    for part in (values, values[:0]):
        buffer = pa.BufferOutputStream()
        table = pa.table({"values": part})
        pq.write_table(table, buffer, compression=codec, use_dictionary=dictionary)
        sizes.append(buffer.getvalue().size)
    return float(sizes[0] - sizes[1]) / len(values)
