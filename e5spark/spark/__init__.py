"""The pyspark door: DataFrames in, DataFrames out.

``embed`` and ``udf`` run on the driver and load no engine; ``worker`` and ``encoders`` run on
executors.
"""

from e5spark.spark.embedding import embed, embedding_udf

__all__ = ["embed", "embedding_udf"]
