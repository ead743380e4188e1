"""Embeds a stream as it arrives: every micro-batch has a directory, which a replay writes again.

spark-submit examples/streaming/foreach_batch.py INPUT OUTPUT CHECKPOINT MODEL
"""

import sys
from functools import partial

from pyspark.sql import DataFrame, SparkSession

from e5spark import embed


def write_vectors(batch: DataFrame, batch_id: int, *, out: str, model: str) -> None:
    """Writes the vectors of one micro-batch.

    Spark runs a batch again if the query ended before it was complete, with the same rows and the
    same number. It overwrites then what it has written before. One action has the model: every
    further one would embed the batch again.
    """
    vectors = embed(batch, text="body", role="passage", model=model, precision="fp32")
    vectors.write.mode("overwrite").parquet(f"{out}/batch_id={batch_id}")


def write_vectors_to_delta(batch: DataFrame, batch_id: int, *, out: str, model: str) -> None:
    """The same for a Delta table, which skips a batch that it already has."""
    vectors = embed(batch, text="body", role="passage", model=model, precision="fp32")
    writer = vectors.write.format("delta").mode("append")
    writer.option("txnAppId", "docs").option("txnVersion", batch_id).save(out)


def main(source: str, out: str, checkpoint: str, model: str) -> None:
    """Embeds the JSON lines that lie in a directory, and those that arrive there, until stopped."""
    spark = SparkSession.builder.getOrCreate()
    docs = spark.readStream.schema("id bigint, body string").json(source)
    batches = docs.writeStream.foreachBatch(partial(write_vectors, out=out, model=model))
    batches.option("checkpointLocation", checkpoint).start().awaitTermination()


if __name__ == "__main__":
    main(*sys.argv[1:])
