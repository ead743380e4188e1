"""The encoder API: texts in, unit vectors out, in order. Nothing here depends on Spark."""

from e5spark.encoder.encoder import Encoder, Encoding
from e5spark.encoder.engine import LoadedModel
from e5spark.encoder.loading import load

__all__ = ["Encoder", "Encoding", "LoadedModel", "load"]
