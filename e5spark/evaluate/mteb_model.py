"""An encoder for mteb 2 that encodes nothing: it looks vectors up in what a job wrote.

mteb's own code then judges e5spark's vectors, on a driver with the extra ``eval``::

    passages = spark.read.parquet("/data/scifact_corpus")  # outputs of e5spark embed
    queries = spark.read.parquet("/data/scifact_queries")
    model = StoredVectors("intfloat/e5-small-v2")
    model.add(passages, role="passage").add(queries, role="query")
    mteb.evaluate(model, mteb.get_task("SciFact"))
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pyspark.sql import DataFrame

from e5spark.errors import ConflictError, InputError, OptionError
from e5spark.evaluate.vectors import collect
from e5spark.search.vectors import VectorColumn, check_comparable, vector_column

Role = Literal["query", "passage"]


class StoredVectors:
    """An ``mteb.EncoderProtocol`` over tables that jobs wrote."""

    def __init__(self, model_name: str, revision: str | None = None) -> None:
        """Makes an encoder that has no vectors yet.

        Args:
            model_name: The checkpoint's name, for mteb's results.
            revision: Its commit.

        Raises:
            OptionError: If mteb is not installed.
        """
        try:
            from mteb.models import ModelMeta
        except ImportError as error:
            raise OptionError(
                "mteb is not installed. Run pip install 'e5spark[eval]' on the driver."
            ) from error
        # Results on the hub need a name with an owner; a directory has none.
        name = model_name if model_name.count("/") == 1 else f"local/{model_name.strip('/')}"
        self.mteb_model_meta = ModelMeta.create_empty({"name": name, "revision": revision})
        self._vectors: dict[bytes, npt.NDArray[np.float32]] = {}
        self._column: VectorColumn | None = None

    def add(
        self, df: DataFrame, *, role: Role, text: str = "text", vector: str = "embedding"
    ) -> "StoredVectors":
        """Adds the vectors of a table, which is collected; returns this encoder.

        Args:
            df: The output of a job, with its text column.
            role: The role that the job embedded the texts with.
            text: The column of the texts, as they were embedded.
            vector: The column of the vectors.

        Raises:
            ColumnError: If a column is missing or holds no vectors.
            ConflictError: If the vectors have another fingerprint than those added before.
            InputError: If a row has no vector.
        """
        column = vector_column(df, vector)
        if self._column is not None:
            check_comparable(self._column, column)
            if self._column.output_type != column.output_type:
                raise ConflictError(
                    f"The vectors are {column.output_type}, those added before "
                    f"{self._column.output_type}; embed all of them with one output type."
                )
        self._column = column
        (vectors,), texts = collect(df, (column,), column=text)
        self._vectors.update(
            (_key(role, value), row) for value, row in zip(texts, vectors, strict=True)
        )
        return self

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        prompt_type: object = None,
        **_: object,
    ) -> npt.NDArray[np.float32]:
        """Returns the stored vectors of mteb's texts, in their order.  # (texts, dim).

        A document of mteb is a passage; everything else is a query, as E5's symmetric tasks have
        it.

        Args:
            inputs: Batches with a list ``text``.
            prompt_type: mteb's ``PromptType`` of the texts, or None.

        Raises:
            InputError: If a text was not embedded, with how many were not.
        """
        role: Role = "passage" if getattr(prompt_type, "value", "") == "document" else "query"
        texts = [text for batch in inputs for text in batch["text"]]
        vectors = [self._vectors.get(_key(role, text)) for text in texts]
        found = [vector for vector in vectors if vector is not None]
        if len(found) < len(texts):
            raise InputError(
                f"{len(texts) - len(found)} of mteb's {len(texts)} texts have no vector with role "
                f"{role!r} in the tables that were added. Embed exactly the texts of the task: a "
                "document is its title, a space and its text, without white space around them."
            )
        return np.stack(found)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:  # noqa: ANN401  # mteb's Array
        """Returns the cosines of all pairs, as mteb computes them."""
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:  # noqa: ANN401
        """Returns the cosine of each pair, as mteb computes it."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)


def _key(role: Role, text: str) -> bytes:
    return hashlib.blake2b(
        f"{role}:{text}".encode("utf-8", "surrogatepass"), digest_size=16
    ).digest()
