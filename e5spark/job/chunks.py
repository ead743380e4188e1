"""The work list of a run, cut into chunks that are embedded and committed one by one."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from math import ceil
from typing import cast

from pyspark.sql import DataFrame, Observation, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructType

from e5spark.job import metrics as account
from e5spark.job.diff import KIND
from e5spark.job.progress import Progress
from e5spark.job.source import Source, embedded
from e5spark.model.resolve import Plan
from e5spark.spark.columns import result_names
from e5spark.tables.ledger.ledger import Kind, Record
from e5spark.tables.sinks.commit import Commits
from e5spark.tables.sinks.files import write_path
from e5spark.tables.sinks.staging import stage

# A chunk is what a kill can cost: minutes of work, on two slots or on two thousand.
_ROWS, _ROWS_A_SLOT = 20_000, 10_000
_MOST_CHUNKS = 2000
# Fewer rows are not worth a task of their own.
_ROWS_A_TASK = 500


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A part of the work list: some of its files, of one kind.

    Attributes:
        number: From 1, for the name of its record.
        kind: ``append`` or ``deferred``.
        paths: The files.
        rows: In all of them.
    """

    number: int
    kind: Kind
    paths: tuple[str, ...]
    rows: int


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How a run is cut up.

    Attributes:
        rows: Rows of a chunk, at most, unless there would be too many chunks.
        tasks: Tasks of a chunk.
        concurrent_chunks: Chunks at a time, so that the last tasks of one do not idle a cluster.
        forced: Whether a chunk gets all of its tasks, however few rows it has.
    """

    rows: int
    tasks: int
    concurrent_chunks: int
    forced: bool = False


def sizes(spark: SparkSession, *, rows: int, tasks: int, concurrent_chunks: int) -> Sizes:
    """Returns how a run is cut up: as it was asked for, else by the task slots of the session."""
    slots = 1 if rows and tasks else _slots(spark)
    return Sizes(
        rows=rows or max(_ROWS, _ROWS_A_SLOT * slots),
        tasks=tasks or slots,
        concurrent_chunks=concurrent_chunks,
        forced=tasks > 0,
    )


def _slots(spark: SparkSession) -> int:
    """How many tasks run at once."""
    # Spark cuts a range into as many parts as there are cores now; Connect has no other way.
    parts = spark.range(1 << 20).select(F.spark_partition_id().alias("part"))
    cores = parts.distinct().count()
    return max(1, cores // int(str(spark.conf.get("spark.task.cpus", "1"))))


def write_work(df: DataFrame, commits: Commits, sizes: Sizes) -> list[Chunk]:
    """Writes the rows that a run has to embed, and returns the chunks that they are cut into.

    Written once, so that the source is not read again for each chunk, and durable, so that
    executors may come and go. A chunk is a group of files: no row is shuffled to get there.

    Args:
        df: The rows, and the kind of each in the column ``KIND``.
        commits: For the place.
        sizes: For the rows of a chunk.
    """
    path = f"{commits.target.location}/{commits.ledger.work}/rows"
    options = {"compression": "zstd", "maxRecordsPerFile": str(sizes.rows)}
    write_path(df, path, format="parquet", options=options, partition=KIND)
    # With a schema, because none can be found where no row was written.
    schema = StructType([each for each in df.schema if each.name != KIND]).add(KIND, StringType())
    files = (
        df.sparkSession.read.schema(schema)
        .parquet(path)
        .groupBy(KIND, F.col("_metadata.file_name").alias("file"))
        .count()
        .orderBy(KIND, "file")
        .collect()
    )
    found = [(row[KIND], f"{path}/{KIND}={row[KIND]}/{row['file']}", row["count"]) for row in files]
    most = max(sizes.rows, ceil(sum(rows for *_, rows in found) / _MOST_CHUNKS))
    return [
        Chunk(number=number, kind=cast(Kind, kind), paths=paths, rows=rows)
        for number, (kind, paths, rows) in enumerate(_grouped(found, most), start=1)
    ]


def _grouped(
    files: Sequence[tuple[str, str, int]], most: int
) -> Iterator[tuple[str, tuple[str, ...], int]]:
    """Neighbouring files of one kind, as many as have `most` rows together."""
    kind, total = "", 0
    paths: list[str] = []
    for each, path, rows in files:
        if paths and (each != kind or total + rows > most):
            yield kind, tuple(paths), total
            paths, total = [], 0
        kind = each
        paths.append(path)
        total += rows
    if paths:
        yield kind, tuple(paths), total


def embed_chunks(
    chunks: Sequence[Chunk], *, plan: Plan, intake: Source, commits: Commits, sizes: Sizes
) -> list[Record]:
    """Embeds chunks and commits each; returns their records.

    After a failure no chunk is begun any more; those in flight are finished and committed.
    """
    progress = Progress(rows=sum(chunk.rows for chunk in chunks), chunks=len(chunks))

    def run(chunk: Chunk) -> Record:
        record = _embed(chunk, plan=plan, intake=intake, commits=commits, sizes=sizes)
        progress.chunk(rows=chunk.rows, tokens=record.counts["tokens"])
        return record

    return _in_flight(run, chunks, sizes.concurrent_chunks)


def _embed(chunk: Chunk, *, plan: Plan, intake: Source, commits: Commits, sizes: Sizes) -> Record:
    spark = intake.rows.sparkSession
    names = result_names(plan, intake.texts)
    name = commits.ledger.name(chunk.number)
    tasks = sizes.tasks if sizes.forced else min(sizes.tasks, ceil(chunk.rows / _ROWS_A_TASK))
    rows = spark.read.schema(intake.rows.schema).parquet(*chunk.paths).repartition(tasks)
    seen = Observation(f"e5spark_{name}")
    vectors = embedded(rows, plan, intake).observe(seen, *account.counts(plan, names))
    files, staged = stage(vectors, commits.target, commits.ledger, name)
    counts = {key: int(value or 0) for key, value in seen.get.items()}
    account.check_chunk(counts, rows=chunk.rows, texts=len(names), staged=staged)
    return commits.record(
        Record(name=name, kind=chunk.kind, files=files, rows=staged, counts=counts)
    )


def _in_flight(run: Callable[[Chunk], Record], chunks: Sequence[Chunk], most: int) -> list[Record]:
    pool = ThreadPoolExecutor(most, thread_name_prefix="e5spark-chunk")
    try:
        futures = [pool.submit(run, chunk) for chunk in chunks]
        done, waiting = wait(futures, return_when=FIRST_EXCEPTION)
        for future in waiting:
            future.cancel()
        failed = next((future for future in futures if future in done and future.exception()), None)
        if failed is not None:
            failed.result()
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
