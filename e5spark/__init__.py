"""E5 embeddings of Spark tables: exact, fast, re-runnable."""

__version__ = "0.1.0"
