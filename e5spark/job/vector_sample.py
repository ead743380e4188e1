"""A sample of the rows that a run has staged, for the report: ids, vectors, texts if allowed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import Column, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from e5spark.job.source import Source
from e5spark.model.resolve import Plan
from e5spark.names import quoted
from e5spark.page.sample import describe
from e5spark.search.vectors import matrix
from e5spark.spark.arrow import to_arrow
from e5spark.spark.columns import result_names

_FILES = 4  # that are read of a chunk
_ID_CHARACTERS, _TEXT_CHARACTERS = 80, 200
_SEED = 20


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Some sampled rows.

    Attributes:
        ids: Their ids as text, cut to 80 characters; None if they have none, or none may be shown.
        groups: Rows of one id, such as the windows of a split text, share a value.
        vectors: For each column of vectors the numbers of the rows that have one, and the vectors.
        texts: For each column of vectors the beginnings of the texts; empty if none may be shown.
    """

    ids: list[str] | None
    groups: list[Any]
    vectors: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]
    texts: list[list[str]]

    def __len__(self) -> int:
        return len(self.groups)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What is read of a chunk.

    Attributes:
        paths: Its staged files.
        schema: Of the files.
        staged: Rows in all of them.
        rows: About as many are read.
        examples: What may be shown of a row: ``none``, ``ids`` or ``texts``.
    """

    paths: Sequence[str]
    schema: StructType
    staged: int
    rows: int
    examples: str


def read(spark: SparkSession, sampling: Sampling, plan: Plan, source: Source) -> Rows:
    """Returns a sample of the staged rows that have a vector, from at most four files, in a job."""
    names = result_names(plan, source.texts)
    files = list(sampling.paths[:: -(-len(sampling.paths) // _FILES)])
    columns = _columns(sampling, source, names)
    vectors = [F.col(quoted(column["embedding"])) for column in names]
    has_vector = vectors[0].isNotNull()
    for vector in vectors[1:]:
        has_vector |= vector.isNotNull()
    rows = spark.read.schema(sampling.schema).parquet(*files).where(has_vector)
    expected = sampling.staged * len(files) / max(len(sampling.paths), 1)
    if expected > sampling.rows:
        rows = rows.sample(sampling.rows / expected, seed=_SEED)
    table = to_arrow(rows.select(*(value.alias(name) for name, value in columns.items())))
    ids = [_text(id, _ID_CHARACTERS) for id in _values(table, "id")]
    if ids and "window" in table.column_names:
        windows = table["window"].to_pylist()
        ids = [f"{id}, window {window}" for id, window in zip(ids, windows, strict=True)]
    has_ids = source.id is not None and not source.id_is_text and sampling.examples != "none"
    return Rows(
        ids=ids if has_ids else None,
        groups=list(_values(table, "id")) or [object() for _ in range(table.num_rows)],
        vectors=[_vectors(table[f"vector_{n}"], plan) for n in range(len(names))],
        texts=[
            [_text(text, _TEXT_CHARACTERS) for text in _values(table, f"text_{n}")]
            for n in range(len(names))
        ],
    )


def as_dict(parts: Sequence[Rows], columns: Sequence[str]) -> dict[str, Any] | None:
    """Returns what the report says of the sample; None without one.

    Args:
        parts: The samples of some chunks.
        columns: The columns of vectors.
    """
    total = sum(map(len, parts))
    if not total:
        return None
    starts = np.cumsum([0, *map(len, parts)])
    codes: dict[Any, int] = {}
    groups = np.array(
        [codes.setdefault(group, len(codes)) for part in parts for group in part.groups]
    )
    described = []
    for n, column in enumerate(columns):
        rows = np.concatenate(
            [part.vectors[n][0] + start for part, start in zip(parts, starts, strict=False)]
        )
        matrices = [part.vectors[n][1] for part in parts if len(part.vectors[n][0])]
        if not matrices:
            continue
        figures = describe(np.concatenate(matrices), rows=rows, groups=groups[rows])
        texts = [text for part in parts for text in part.texts[n]]
        shown = _shown(figures["examples"]) if texts else set()
        described.append(
            {"column": column, **figures, "texts": {str(row): texts[row] for row in sorted(shown)}}
        )
    has_ids = all(part.ids is not None for part in parts)
    return {
        "rows": total,
        "ids": [id for part in parts for id in part.ids or ()] if has_ids else None,
        "columns": described,
    }


def _columns(
    sampling: Sampling, source: Source, names: Sequence[Mapping[str, str]]
) -> dict[str, Column]:
    """Returns what is selected. Strings travel as bytes, which need not be valid UTF-8."""
    columns = {f"vector_{n}": F.col(quoted(column["embedding"])) for n, column in enumerate(names)}
    if source.id is not None:
        columns["id"] = F.col(quoted(source.id)).cast("string").cast("binary")
    if "window" in names[0]:
        columns["window"] = F.col(quoted(names[0]["window"]))
    if sampling.examples == "texts":
        written = {name.lower(): name for name in source.columns}
        texts = source.texts.names if len(names) > 1 else source.texts.names[:1]
        for n, name in enumerate(texts):
            if name.lower() in written:
                begin = F.substring(F.col(quoted(written[name.lower()])), 1, _TEXT_CHARACTERS + 1)
                columns[f"text_{n}"] = begin.cast("binary")
    return columns


def _values(table: pa.Table, name: str) -> list[Any]:
    return list(table[name].to_pylist()) if name in table.column_names else []


def _text(value: bytes | None, characters: int) -> str:
    text = (value or b"").decode("utf-8", "replace")
    return text if len(text) <= characters else f"{text[: characters - 1]}…"


def _vectors(
    column: pa.ChunkedArray, plan: Plan
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    rows = np.flatnonzero(column.is_valid().to_numpy())
    array = column.drop_null().combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # of no chunk, in older Arrow
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    return rows, matrix(array, plan.spec.output_type, plan.recipe.dim)


def _shown(examples: Sequence[Mapping[str, Any]]) -> set[int]:
    """Returns the rows that are named."""
    return {
        row
        for example in examples
        for row in (example["row"], *(near["row"] for near in example["neighbours"]))
    }
