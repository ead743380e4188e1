"""python jobs/benchmark_search.py [--queries N] [--corpus N] [--scan N] [--k K] ...

The speed of ``nearest`` beside what bounds it, on random vectors of unit length, on the same cores:

- many queries: numpy's blocked product and argpartition, without Spark;
- one query: reading the column of vectors;
- on Spark 4.2 and later: ``nearestByJoin``, on fewer queries (``--join-queries``), because it
  compares rows one by one.

Contenders run in turn, in rounds, after a warm-up; the figures are the fastest of each. The last
line is a JSON document.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread of BLAS for each core's task

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from e5spark import nearest
from e5spark.cpus import available_cpus

Floats = npt.NDArray[np.float32]
_QUERY_ROWS, _CORPUS_ROWS = 1024, 4096


def main() -> int:
    """Measures, and prints the figures."""
    options = _options()
    cores = options.cores or available_cpus()
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        queries, corpus = (
            _unit(options.queries, options.dim, 1),
            _unit(options.corpus, options.dim, 2),
        )
        paths = {name: f"{work}/{name}" for name in ("queries", "corpus", "scan")}
        _write(paths["queries"], queries, options.files)
        _write(paths["corpus"], corpus, options.files)
        _write(paths["scan"], _unit(options.scan, options.dim, 3), options.files)
        spark = _session(cores)
        tables = {name: spark.read.parquet(path) for name, path in paths.items()}
        one = tables["queries"].where("id = 0")
        contenders: dict[str, Callable[[], object]] = {
            "numpy": lambda: _numpy(queries, corpus, options.k, cores),
            "nearest": lambda: _run(nearest(tables["queries"], tables["corpus"], k=options.k)),
            "read": lambda: _run(tables["scan"].select("embedding")),
            "read_in_python": lambda: _run(tables["scan"].mapInArrow(_count, "rows bigint")),
            "nearest_to_one": lambda: _run(nearest(one, tables["scan"], k=options.k)),
        }
        few = tables["queries"].where(F.col("id") < options.join_queries)
        if hasattr(DataFrame, "nearestByJoin"):
            contenders["nearest_to_few"] = lambda: _run(nearest(few, tables["corpus"], k=options.k))
            contenders["nearest_by_join"] = lambda: _run(_join(few, tables["corpus"], options.k))
        seconds = _rounds(contenders, options.rounds)
        spark.stop()
    document = {**vars(options), "cores": cores, "seconds": seconds, **_ratios(seconds)}
    print(json.dumps(document))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=10_000, help="queries (10000)")
    parser.add_argument("--corpus", type=int, default=200_000, help="vectors to search (200000)")
    parser.add_argument("--scan", type=int, default=1_000_000, help="for one query (1000000)")
    parser.add_argument("--join-queries", type=int, default=20, help="for nearestByJoin (20)")
    parser.add_argument("--dim", type=int, default=384, help="components (384)")
    parser.add_argument("--k", type=int, default=10, help="rows for each query (10)")
    parser.add_argument("--files", type=int, default=8, help="Parquet files of a table (8)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (3)")
    parser.add_argument("--cores", type=int, default=0, help="cores (all)")
    parser.add_argument("--work", help="where to write the tables (the system's directory)")
    return parser.parse_args()


def _unit(rows: int, dim: int, seed: int) -> Floats:
    vectors = np.random.default_rng(seed).standard_normal((rows, dim), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def _write(path: str, vectors: Floats, files: int) -> None:
    Path(path).mkdir()
    for number, ids in enumerate(np.array_split(np.arange(len(vectors)), files)):
        part = vectors[ids[0] : ids[-1] + 1] if len(ids) else vectors[:0]
        offsets = pa.array(np.arange(len(part) + 1, dtype=np.int32) * vectors.shape[1])
        lists = pa.ListArray.from_arrays(offsets, pa.array(part.reshape(-1)))
        table = pa.table({"id": pa.array(ids, pa.int64()), "embedding": lists})
        pq.write_table(table, f"{path}/{number}.parquet", use_dictionary=False)


def _session(cores: int) -> SparkSession:
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.master(f"local[{cores}]").appName("search")
    settings: dict[str, bool | float | int | str | None] = {
        "spark.driver.memory": "4g",
        "spark.log.level": "ERROR",
        # A file for each task: with the default, three tasks would share two cores.
        "spark.sql.files.maxPartitionBytes": "48m",
        "spark.sql.shuffle.partitions": str(cores),
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }
    return builder.config(map=settings).getOrCreate()


def _numpy(queries: Floats, corpus: Floats, k: int, cores: int) -> None:
    """The best rows of each block, a thread for each core; the blocks are not even merged."""

    def search(first: int) -> None:
        rows = queries[first : first + _QUERY_ROWS]
        for start in range(0, len(corpus), _CORPUS_ROWS):
            scores = rows @ corpus[start : start + _CORPUS_ROWS].T
            best = np.argpartition(scores, -k, axis=1)[:, -k:]
            np.take_along_axis(scores, best, axis=1)

    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(search, range(0, len(queries), _QUERY_ROWS)))


def _join(queries: DataFrame, corpus: DataFrame, k: int) -> DataFrame:
    left = queries.select(F.col("id").alias("query_id"), F.col("embedding").alias("query"))
    score = F.expr("vector_inner_product(query, embedding)")
    joined: DataFrame = left.nearestByJoin(  # type: ignore[operator]  # since Spark 4.2
        corpus, score, k, "exact", "similarity"
    )
    return joined


def _count(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield pa.RecordBatch.from_pydict({"rows": pa.array([batch.num_rows], pa.int64())})


def _run(df: DataFrame) -> None:
    df.write.format("noop").mode("overwrite").save()


def _rounds(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            seconds[name].append(round(time.perf_counter() - started, 3))
            print(f"{name}: {seconds[name][-1]} s", file=sys.stderr)
    return {name: min(values) for name, values in seconds.items()}


def _ratios(seconds: dict[str, float]) -> dict[str, Any]:
    ratios = {
        "share_of_numpy": seconds["numpy"] / seconds["nearest"],
        "one_query_to_reading": seconds["nearest_to_one"] / seconds["read"],
        "one_query_to_reading_in_python": seconds["nearest_to_one"] / seconds["read_in_python"],
    }
    if "nearest_by_join" in seconds:
        ratios["times_nearest_by_join"] = seconds["nearest_by_join"] / seconds["nearest_to_few"]
    return {name: round(value, 3) for name, value in ratios.items()}


if __name__ == "__main__":
    sys.exit(main())
