"""The Spark API: ``embed`` takes a DataFrame and returns one, ``embedding_udf`` returns a UDF.

``embedding``, ``columns`` and ``udf`` run on the driver and load no engine; ``worker``,
``encoder_cache`` and ``results`` run on executors.
"""

from e5spark.spark.embedding import embed, embedding_udf

__all__ = ["embed", "embedding_udf"]
