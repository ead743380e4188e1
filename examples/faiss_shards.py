"""Builds a FAISS index of an export with --int64, a shard in each task of Spark.

spark-submit examples/faiss_shards.py EXPORT INDEX: directories that all machines see.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import SparkSession

FIRST = "Load the export that this one starts from, or export everything."
SHARDS = 8  # as many as an index has had from the start: they decide where an id is


def load(spark: SparkSession, export: str, index: str, factory: str = "IVF16,Flat") -> int:
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
    if is_new:  # a sample trains the clusters; factory "Flat" searches exactly and needs none
        share = min(1.0, 50_000 / record["counts"]["ok"])
        sample = rows.sample(share, seed=0).select("vector").toPandas()["vector"]
        empty = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
        empty.train(np.stack(sample))
        faiss.write_index(empty, f"{index}/empty.faiss")

    def build(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        path = f"{index}/{TaskContext.get().partitionId():05d}.faiss"
        shard = faiss.read_index(f"{index}/empty.faiss" if is_new else path)
        for batch in batches:
            shard.remove_ids(batch["id"].to_numpy())  # also those that are replaced
            added = batch.filter(batch["vector"].is_valid())
            vectors = added["vector"].flatten().to_numpy().reshape(len(added), dim)
            shard.add_with_ids(vectors, added["id"].to_numpy())
        faiss.write_index(shard, f"{path}.new")
        os.replace(f"{path}.new", path)
        yield pa.RecordBatch.from_pydict({"vectors": [shard.ntotal]})

    sizes = rows.union(gone).repartition(SHARDS, "id").mapInArrow(build, "vectors long")
    count = sum(row["vectors"] for row in sizes.collect())
    assert count == record["counts"]["ok"], count
    Path(index, "export").write_text(record["export"])
    return count


def search(index: str, query: npt.NDArray[np.float32], k: int, probes: int = 4) -> list[int]:
    """Returns the ids of the nearest vectors; threads search the shards together."""
    empty = faiss.read_index(f"{index}/empty.faiss")
    shards = faiss.IndexShards(empty.d, True, False)
    for path in sorted(Path(index).glob("0*.faiss")):
        shard = faiss.read_index(str(path))
        shard.nprobe = probes
        shards.add_shard(shard)
    return [int(id) for id in shards.search(query[None], k)[1][0]]


if __name__ == "__main__":
    print(load(SparkSession.builder.getOrCreate(), *sys.argv[1:]), "vectors")
