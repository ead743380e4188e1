"""The recipe for foreachBatch: each row of a stream once, however often a batch is run."""

import importlib.util
import json
import shutil
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
from pyspark.sql import SparkSession

from tests import tables
from tests.cluster import REPOSITORY

_SPEC = importlib.util.spec_from_file_location(
    "foreach_batch", REPOSITORY / "examples" / "streaming" / "foreach_batch.py"
)
recipe = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(recipe)


def test_a_batch_that_is_run_again_leaves_each_row_once(
    spark: SparkSession, model: str, tmp_path: Path
) -> None:
    source, checkpoint, out = (tmp_path / name for name in ("docs", "checkpoint", "out"))
    source.mkdir()

    def arrive(name: str, number: int, body: str) -> None:
        (source / name).write_text(json.dumps({"id": number, "body": body}), "utf-8")

    def run() -> None:
        docs = spark.readStream.schema("id bigint, body string").json(str(source))
        write = partial(recipe.write_vectors, out=str(out), model=model)
        query = docs.writeStream.foreachBatch(write).trigger(availableNow=True)
        query.option("checkpointLocation", str(checkpoint)).start().awaitTermination()

    arrive("first.json", 1, "one")
    run()
    # As if the query had been killed after the batch was written and before Spark noted it.
    shutil.rmtree(checkpoint / "commits")
    arrive("second.json", 2, "two")
    run()
    assert sorted(path.name for path in out.iterdir()) == ["batch_id=0", "batch_id=1"]
    assert pq.read_table(out / "batch_id=0").num_rows == 1
    tables.check({1: "one", 2: "two"}, out=out, model=model)
