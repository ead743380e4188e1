"""Builds a usearch index of an export with --int64, a shard in each task of Spark.

spark-submit examples/usearch_shards.py EXPORT INDEX: directories that all machines see.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import SparkSession
from usearch.index import Index, Indexes

FIRST = "Load the export that this one starts from, or export everything."
SHARDS = 8  # as many as an index has had from the start: they decide where an id is


def load(spark: SparkSession, export: str, index: str) -> int:
    """Brings the shards up to date, all at a time, and returns their vectors."""
    record = json.loads(Path(export, "export.json").read_text("utf-8"))
    assert record["vector"]["type"] == "float32", record["vector"]
    dim, is_new = record["vector"]["dim"], record["since"] is None
    names = (record["since"], record["export"], f"loading {record['export']}")
    assert is_new or Path(index, "export").read_text() in names, FIRST
    Path(index).mkdir(parents=True, exist_ok=True)
    Path(index, "export").write_text(f"loading {record['export']}")
    rows = spark.read.parquet(f"{export}/vectors").select("id", "vector")
    gone = spark.read.parquet(f"{export}/deleted").selectExpr("id", "cast(null as array<float>)")

    def build(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        path = f"{index}/{TaskContext.get().partitionId():05d}.usearch"
        shard = Index(ndim=dim, metric="ip", dtype="f32") if is_new else Index.restore(path)
        for batch in batches:
            shard.remove(batch["id"].to_numpy().astype(np.uint64))  # also those that are replaced
            added = batch.filter(batch["vector"].is_valid())
            vectors = added["vector"].flatten().to_numpy().reshape(len(added), dim)
            shard.add(added["id"].to_numpy().astype(np.uint64), vectors)
        shard.save(f"{path}.new")
        os.replace(f"{path}.new", path)
        yield pa.RecordBatch.from_pydict({"vectors": [len(shard)]})

    sizes = rows.union(gone).repartition(SHARDS, "id").mapInArrow(build, "vectors long")
    count = sum(row["vectors"] for row in sizes.collect())
    assert count == record["counts"]["ok"], count
    Path(index, "export").write_text(record["export"])
    return count


def search(index: str, query: npt.NDArray[np.float32], k: int) -> list[int]:
    """Returns the ids of the nearest vectors of all shards; the files are mapped, not read."""
    shards = Indexes(
        paths=[str(path) for path in sorted(Path(index).glob("0*.usearch"))], view=True
    )
    return [int(id) for id in shards.search(query, k).keys]


if __name__ == "__main__":
    print(load(SparkSession.builder.getOrCreate(), *sys.argv[1:]), "vectors")
