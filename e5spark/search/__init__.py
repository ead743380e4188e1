"""Search in tables of vectors: the nearest rows of a corpus, exactly."""

from e5spark.search.neighbors import nearest

__all__ = ["nearest"]
