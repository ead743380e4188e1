"""The Spark API: ``embed`` takes a DataFrame and returns one, ``embedding_udf`` returns a UDF.

``E5Embedder`` is ``embed`` as a stage of a Spark ML pipeline. ``embedding``, ``columns``, ``udf``
and ``embedder`` run on the driver and load no engine; ``worker``, ``encoder_cache`` and ``results``
run on executors.
"""

from typing import TYPE_CHECKING

from e5spark.spark.embedding import embed, embedding_udf

if TYPE_CHECKING:
    from e5spark.spark.embedder import E5Embedder

__all__ = ["E5Embedder", "embed", "embedding_udf"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Imports ``E5Embedder`` when it is first used: workers do without Spark ML and pandas."""
        if name != "E5Embedder":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from e5spark.spark.embedder import E5Embedder

        return E5Embedder

    def __dir__() -> list[str]:
        """Returns the public names, imported or not."""
        return sorted({*globals(), *__all__})
