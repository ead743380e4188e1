"""E5 embeddings of Spark tables: exact, fast, re-runnable.

The public names are imported when they are first used, so ``import e5spark`` loads neither Spark
nor an engine:

- ``embed``: adds the vectors of a text column to a DataFrame;
- ``embedding_udf``: the same vectors as a UDF;
- ``E5Embedder``: the same vectors as a stage of a Spark ML pipeline;
- ``Encoder``: the same vectors without Spark;
- ``nearest``: the rows of a table that are nearest to each query;
- ``errors``: every error that e5spark raises on purpose.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from e5spark import errors
    from e5spark.encoder import Encoder
    from e5spark.search import nearest
    from e5spark.spark import E5Embedder, embed, embedding_udf

__version__ = "0.1.0"
__all__ = ["E5Embedder", "Encoder", "__version__", "embed", "embedding_udf", "errors", "nearest"]

if not TYPE_CHECKING:  # else type checkers would accept any name
    _MODULES = {
        "E5Embedder": "e5spark.spark",
        "Encoder": "e5spark.encoder",
        "embed": "e5spark.spark",
        "embedding_udf": "e5spark.spark",
        "nearest": "e5spark.search",
    }

    def __getattr__(name: str) -> object:
        """Imports a public name when it is first used."""
        if name == "errors":
            return importlib.import_module("e5spark.errors")
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_MODULES[name]), name)

    def __dir__() -> list[str]:
        """Returns the public names, imported or not."""
        return sorted({*globals(), *__all__})
