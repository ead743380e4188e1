"""The chunks of a run: parts of its work list, each embedded and committed as a unit."""

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from math import ceil
from pathlib import PurePath
from typing import Any, cast

from pyspark.sql import Column, DataFrame, Observation, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructType

from e5spark.job import figures, isolation, metrics
from e5spark.job.diff import KIND
from e5spark.job.hashes import kept_hash
from e5spark.job.progress import Progress
from e5spark.job.source import Source, embedded
from e5spark.job.trace import Trace
from e5spark.job.watch import Watch
from e5spark.model.resolve import Plan
from e5spark.names import quoted
from e5spark.spark.columns import figure_names, result_names
from e5spark.spark.executors import task_slots
from e5spark.tables.ledger.records import Kind, Record
from e5spark.tables.sinks.commit import Commits
from e5spark.tables.sinks.files import write_path
from e5spark.tables.sinks.staging import stage
from e5spark.tables.spark_settings import described, inherited, spark_settings

# A killed run loses at most the chunks in flight: minutes of work on two slots or two thousand.
_ROWS, _ROWS_PER_SLOT = 20_000, 10_000
_MOST_CHUNKS = 2000
# Fewer rows are not worth a task of their own.
_ROWS_PER_TASK = 500
_KINDS = ("append", "deferred")
# Rows are exchanged by their own values, so that a task that is done again sends each row where it
# has sent it before. Its vectors may differ in their last bits, for which Spark 4.2 would do the
# whole stage again, or end the job once a file is written.
_EXCHANGE = {
    f"spark.sql.shuffle.orderIndependentChecksum.{name}": "false"
    for name in ("enabled", "enableFullRetryOnMismatch", "enableQueryLevelRollbackOnMismatch")
}
_FILE, _ROWS_OF_FILE, _BYTES = (f"__e5spark_{name}" for name in ("file", "rows", "bytes"))


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A part of the work list: some of its files, with rows of one kind.

    Attributes:
        number: From 1, for the name of its record.
        kind: ``append`` or ``deferred``.
        paths: The files, or their directory.
        rows: Rows in all of these files.
        output_files: Files to write; 0 is one for each task.
        sample: About as many of its rows are sampled for the report.
    """

    number: int
    kind: Kind
    paths: tuple[str, ...]
    rows: int
    output_files: int = 0
    sample: int = 0


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of a run's chunks, and how many chunks run at a time.

    Attributes:
        rows: The most rows in a chunk, unless there would be more than 2,000 chunks, or a chunk
            would not fill an output file.
        tasks: Tasks of a chunk.
        concurrent_chunks: Chunks that run at a time, so that the last tasks of one do not leave a
            cluster idle.
        forced: Whether every chunk gets this many tasks, however few rows it has.
        file_bytes: The size of an output file, and so of the smallest chunk; 0 if each task writes
            a file.
    """

    rows: int
    tasks: int
    concurrent_chunks: int
    forced: bool = False
    file_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class WorkFile:
    """A file of the work list.

    Attributes:
        kind: Of its rows.
        path: The file.
        rows: Its rows.
        bytes: Its size.
    """

    kind: str
    path: str
    rows: int
    bytes: int = 0


def sizes(
    spark: SparkSession,
    *,
    rows: int,
    tasks: int,
    concurrent_chunks: int,
    file_bytes: int = 0,
    expected: int | None = None,
) -> Sizes:
    """Returns the sizes from the config; for a 0 in it, a size that suits the task slots.

    Args:
        spark: The session.
        rows: From the config.
        tasks: From the config.
        concurrent_chunks: From the config.
        file_bytes: From the config.
        expected: Rows to embed; None if they are not counted yet.
    """
    has_one_task = expected is not None and expected <= _ROWS_PER_TASK
    slots = 1 if has_one_task or (rows and tasks) else task_slots(spark)
    return Sizes(
        rows=rows or max(_ROWS, _ROWS_PER_SLOT * slots),
        tasks=tasks or slots,
        concurrent_chunks=concurrent_chunks,
        forced=tasks > 0,
        file_bytes=file_bytes,
    )


def tasks_of(sizes: Sizes, rows: int) -> int:
    """Returns the tasks of a chunk of so many rows."""
    return sizes.tasks if sizes.forced else min(sizes.tasks, ceil(rows / _ROWS_PER_TASK))


def rows_per_file(sizes: Sizes, row_bytes: float) -> int:
    """Returns the rows of an output file; 0 if each task writes a file.

    Args:
        sizes: The sizes of the run's chunks.
        row_bytes: The bytes of a row, with its vectors; 0 if there is none.
    """
    return ceil(sizes.file_bytes / row_bytes) if sizes.file_bytes and row_bytes else 0


def rows_per_chunk(sizes: Sizes, per_file: int) -> int:
    """Returns the most rows of a chunk: those of whole output files, and of one at least."""
    return max(1, sizes.rows // per_file) * per_file if per_file else sizes.rows


def write_work(
    df: DataFrame, commits: Commits, sizes: Sizes, *, expected: int | None, vector_bytes: int = 0
) -> list[Chunk]:
    """Writes the rows that a run has to embed, and returns the chunks of this work list.

    It is written once, so that the source is not read again for each chunk, and it is durable, so
    that executors may come and go. A chunk is a group of files, so that it needs no shuffle.

    Args:
        df: The rows, with their kind in the column ``KIND``.
        commits: For the directory of the work list.
        sizes: For the number of rows in a chunk.
        expected: The number of rows; None if they are not counted yet.
        vector_bytes: The bytes of the vectors of a row, for the rows of an output file.
    """
    path = commits.ledger.work_path("rows")
    options = {"compression": "zstd", "maxRecordsPerFile": str(sizes.rows)}
    observation = Observation("e5spark_work")
    kinds = [F.count(F.when(F.col(KIND) == kind, 1)).alias(kind) for kind in _KINDS]
    rows = df.observe(observation, *kinds)
    with described(df.sparkSession, "write the work list"):
        write_path(rows, path, format="parquet", options=options, partition=KIND)
    if expected is not None and expected <= sizes.rows and not sizes.file_bytes:
        # One chunk of each kind: no file to ask.
        counts = {kind: int(count or 0) for kind, count in observation.get.items()}
        work = [
            WorkFile(kind=kind, path=f"{path}/{KIND}={kind}", rows=counts[kind])
            for kind in _KINDS
            if counts[kind]
        ]
    else:
        work = _files(df, path)
    return _chunks(work, sizes, vector_bytes)


def _chunks(work: Sequence[WorkFile], sizes: Sizes, vector_bytes: int) -> list[Chunk]:
    """Returns the chunks: as many rows as the sizes say, and the rows of one output file at least.

    A row of an output file is a row of the work list, as compressible, with its vectors, which are
    not, and with a few small numbers, which take a byte or two.
    """
    total = sum(file.rows for file in work)
    row = sum(file.bytes for file in work) / total + vector_bytes if total else 0.0
    per_file = rows_per_file(sizes, row)
    most = rows_per_chunk(sizes, per_file)
    if per_file:
        most += max(file.rows for file in work) // 2  # to the nearest file of the work list
    most = max(most, ceil(total / _MOST_CHUNKS))
    chunks = []
    for number, group in enumerate(_grouped(work, most), start=1):
        rows = sum(file.rows for file in group)
        chunks.append(
            Chunk(
                number=number,
                kind=cast(Kind, group[0].kind),
                paths=tuple(file.path for file in group),
                rows=rows,
                output_files=max(1, round(rows / per_file)) if per_file else 0,
            )
        )
    return chunks


def _files(df: DataFrame, path: str) -> list[WorkFile]:
    """Returns the files of a work list, in order."""
    # With a schema, because Spark cannot infer one if no row was written.
    columns = [field for field in df.schema if field.name != KIND]
    schema = StructType(columns).add(KIND, StringType())
    files = (
        df.sparkSession.read.schema(schema)
        .parquet(path)
        .groupBy(KIND, F.col("_metadata.file_name").alias(_FILE))
        .agg(
            F.count(F.lit(1)).alias(_ROWS_OF_FILE),
            F.max(F.col("_metadata.file_size")).alias(_BYTES),
        )
        .orderBy(KIND, _FILE)
        .collect()
    )
    return [
        WorkFile(
            kind=row[KIND],
            path=f"{path}/{KIND}={row[KIND]}/{row[_FILE]}",
            rows=row[_ROWS_OF_FILE],
            bytes=row[_BYTES],
        )
        for row in files
    ]


def _grouped(files: Sequence[WorkFile], limit: int) -> Iterator[list[WorkFile]]:
    """Yields groups of neighbouring files of one kind: up to ``limit`` rows, or a single file."""
    group: list[WorkFile] = []
    rows = 0
    for file in files:
        if group and (file.kind != group[0].kind or rows + file.rows > limit):
            yield group
            group, rows = [], 0
        group.append(file)
        rows += file.rows
    if group:
        yield group


def embed_chunks(
    chunks: Sequence[Chunk],
    *,
    plan: Plan,
    source: Source,
    commits: Commits,
    sizes: Sizes,
    watch: Watch,
    trace: Trace,
) -> list[Record]:
    """Embeds and commits each chunk; returns the records of the commits.

    The watch gets the figures of each, and the trace what the report shows. A chunk whose worker
    dies is embedded again, with its texts in a process of their own. After any other failure no
    further chunk begins; chunks in flight are finished and committed.
    """
    if not chunks:
        return []
    spark = source.rows.sparkSession
    progress = Progress(
        rows=sum(chunk.rows for chunk in chunks),
        chunks=len(chunks),
        model=f"{_name(plan)} in {plan.spec.precision}",
        # Elsewhere, executors have no directory of this machine.
        on_this_machine=str(spark.conf.get("spark.master", "")).startswith("local"),
    )
    shared = _Shared(
        plan=plan, source=source, commits=commits, sizes=sizes, progress=progress, trace=trace
    )

    def run(chunk: Chunk) -> Record:
        chunk = replace(chunk, sample=trace.rows_to_sample(chunk.number, len(chunks)))
        embed = functools.partial(_embed, chunk, shared)
        rows = f"{chunk.rows:,} row{'s' * (chunk.rows != 1)}"
        started = time.monotonic()
        with described(spark, f"embed chunk {chunk.number} of {len(chunks)} ({rows})"):
            record, observed = isolation.isolated_after_death(embed)
        watch.add(figures.observed(observed))
        trace.add(observed, seconds=time.monotonic() - started)
        progress.chunk(chunk.number, rows=chunk.rows, tokens=_tokens(record))
        return record

    with progress, spark_settings(spark, _EXCHANGE if sizes.file_bytes else {}):
        return _run_concurrently(spark, run, chunks, sizes.concurrent_chunks)


def _name(plan: Plan) -> str:
    return PurePath(plan.spec.checkpoint or plan.spec.model).name


def _tokens(record: Record) -> int:
    return record.counts["tokens"] - record.counts["lost_tokens"]


@dataclass(frozen=True, kw_only=True)
class _Shared:
    """What the chunks of a run share."""

    plan: Plan
    source: Source
    commits: Commits
    sizes: Sizes
    progress: Progress
    trace: Trace


def _embed(chunk: Chunk, shared: _Shared, isolated: bool) -> tuple[Record, Mapping[str, Any]]:
    """Embeds and commits a chunk; returns its record, and all that was observed of its rows."""
    plan, source, commits, trace = shared.plan, shared.source, shared.commits, shared.trace
    spark = source.rows.sparkSession
    names = result_names(plan, source.texts)
    name = commits.ledger.name(chunk.number)
    if isolated:  # what the attempt that has failed may have left
        commits.ledger.discard(Record(name=name, kind=chunk.kind))
    rows = spark.read.schema(source.rows.schema).parquet(*chunk.paths)
    rows = rows.repartition(tasks_of(shared.sizes, chunk.rows))
    observation = Observation(f"e5spark_{name}{'_isolated' * isolated}")
    tally = shared.progress.begin(chunk.number, rows=chunk.rows)
    vectors = embedded(rows, plan, source, figures=True, isolated=isolated, tally=tally)
    if chunk.output_files:  # before the figures, which then count a row once
        vectors = vectors.repartition(chunk.output_files, *_exchange_keys(vectors, source))
    vectors = vectors.observe(
        observation,
        *metrics.counts(plan, names),
        *figures.columns(plan, source),
        *trace.columns(source),
    ).drop(*(column for columns in figure_names(source.texts) for column in columns.values()))
    files, staged = stage(vectors, commits.target, commits.ledger, name)
    observed = observation.get
    counts = {key: int(observed[key] or 0) for key in metrics.COUNTS}
    metrics.check_chunk(counts, rows=chunk.rows, texts=len(names), staged=staged)
    record = Record(name=name, kind=chunk.kind, files=files, rows=staged, counts=counts)
    if chunk.sample:  # before the commit, which moves the files
        paths = commits.ledger.paths([record])
        trace.sample(vectors, paths, source, staged=staged, rows=chunk.sample)
    return commits.commit(record), observed


def _exchange_keys(vectors: DataFrame, source: Source) -> list[Column]:
    """Returns what decides the file of a row: its id; without one, all that the row has."""
    if source.id is not None:
        return [F.col(quoted(source.id))]
    return [F.col(quoted(source.hash)), kept_hash(vectors, source.kept)]


def _run_concurrently(
    spark: SparkSession, run: Callable[[Chunk], Record], chunks: Sequence[Chunk], limit: int
) -> list[Record]:
    pool = ThreadPoolExecutor(limit, thread_name_prefix="e5spark-chunk")
    try:
        # Inherited for each chunk: what a thread inherits, it also changes.
        futures = [pool.submit(inherited(spark, run), chunk) for chunk in chunks]
        done, waiting = wait(futures, return_when=FIRST_EXCEPTION)
        for future in waiting:
            future.cancel()
        failed = next((future for future in futures if future in done and future.exception()), None)
        if failed is not None:
            failed.result()
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
