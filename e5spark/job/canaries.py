"""Canaries: fixed texts whose vectors show that a model still gives what it gave.

Their vectors are kept in the manifest of a table and compared with new ones, which an executor
embeds in the same way as rows, before a run embeds its first row.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pyspark.sql import Row, SparkSession
from pyspark.sql import functions as F

from e5spark.errors import ConflictError
from e5spark.job.isolation import isolated_after_death
from e5spark.model.resolve import Plan, as_float32
from e5spark.spark.columns import TextColumns
from e5spark.spark.embedding import embed_plan
from e5spark.tables.spark_settings import described

# Words, numbers and marks that tokenizers treat in their own ways, in several scripts and lengths.
# A table keeps the texts with the vectors, so that this list may change.
TEXTS = (
    "a",
    "The ferry to the island leaves at 7:45 every morning, except on Sundays.",
    "Größenänderungen können später ausgeglichen werden; naïve façade, Ærøskøbing, Łódź.",
    "Москва и Санкт-Петербург соединены железной дорогой длиной 650 км.",
    "東京の天気は晴れ、最高気温は28度です。明日は雨が降るでしょう。",
    "يعبر الجسر القديم النهر قرب السوق، ويغلق عند منتصف الليل.",
    "E = mc², 3.14159, f(x) != g(y); see https://example.org/a_b?c=1#d 🙂",
    # Beyond 512 tokens: the limit is part of what is watched.
    " ".join(
        f"Entry {number}: the keeper of the light wrote down wind, tide, {number * 37 % 101} ships."
        for number in range(40)
    ),
)

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Canaries:
    """Texts and their float32 vectors.

    Attributes:
        texts: The texts that had a vector.
        vectors: The vectors of each text: one, or one for each window.  # (windows, dim)
    """

    texts: tuple[str, ...]
    vectors: tuple[Vectors, ...]

    def as_dict(self) -> dict[str, Any]:
        """Returns the canaries as JSON: each vector as base64 of little-endian float32."""
        return {
            "texts": list(self.texts),
            "vectors": [
                [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
                for vectors in self.vectors
            ],
        }


def read(document: Mapping[str, Any]) -> Canaries:
    """Returns the canaries that a manifest holds.

    Raises:
        ConflictError: If they are damaged.
    """
    try:
        texts = tuple(document["texts"])
        vectors = tuple(
            np.stack([np.frombuffer(base64.b64decode(row, validate=True), "<f4") for row in rows])
            for rows in document["vectors"]
        )
        are_texts = texts and all(isinstance(text, str) for text in texts)
        if len(texts) != len(vectors) or not are_texts:
            raise ValueError("its texts and vectors do not belong together")
    except (KeyError, TypeError, ValueError) as error:
        raise ConflictError(
            "The canaries in the manifest of the output are damaged: they are not texts with "
            "float32 vectors. Restore the manifest from a backup; or remove the key canaries from "
            "it, and the next run adds new ones."
        ) from error
    return Canaries(texts=texts, vectors=vectors)


def embed(spark: SparkSession, plan: Plan, texts: Sequence[str] = TEXTS) -> Canaries:
    """Returns the vectors of texts from one task on an executor, without texts that have none.

    They are passages and float32, before any output type; everything else is as in the plan.
    """
    # One partition; a classic session would keep rows that come from Python in an RDD.
    text = F.element_at(F.array(*map(F.lit, texts)), F.col("id").cast("int") + 1)
    rows = spark.range(0, len(texts), 1, 1).select(F.col("id").alias("number"), text.alias("text"))
    columns = TextColumns(text="text", role="passage")

    def collect(isolated: bool) -> list[Row]:
        result = embed_plan(
            rows, as_float32(plan), columns, event="canaries", isolated=isolated
        ).filter(F.col("status") == "ok")
        return result.select("number", "embedding").collect()  # in order: one task

    with described(spark, "embed the canaries"):
        embedded = isolated_after_death(collect)
    vectors = {
        number: np.array([row.embedding for row in embedded if row.number == number], np.float32)
        for number in dict.fromkeys(row.number for row in embedded)
    }
    return Canaries(
        texts=tuple(texts[number] for number in vectors), vectors=tuple(vectors.values())
    )


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far the vectors of one text may be apart.

    Attributes:
        difference: The largest difference of a component, for vectors of unit length; or
        cosine: The smallest cosine.
    """

    difference: float | None = None
    cosine: float = -1.0


# fp32: every machine is promised 1e-5 from the reference, so two are 2e-5 apart at most. bf16:
# promised a cosine of 0.9995 to the reference at worst (1.8 degrees), so 0.998 between two.
# int8: one model has one set of integers, and activations are rounded to others only at ties;
# saturation, which is what to catch, costs far more than 0.01.
TOLERANCES: Mapping[str, Tolerance] = {
    "fp32": Tolerance(difference=1e-4),
    "bf16": Tolerance(cosine=0.998),
    "int8": Tolerance(cosine=0.99),
}


def difference(stored: Canaries, current: Canaries, tolerance: Tolerance) -> str:
    """Returns what differs beyond a tolerance, as a clause for a message; empty if nothing does."""
    if stored.texts != current.texts:
        lost = len(set(stored.texts) - set(current.texts))
        return f"{lost} of {len(stored.texts)} canaries have no vector any more"
    worst, least = 0.0, 1.0
    for before, after in zip(stored.vectors, current.vectors, strict=True):
        if before.shape != after.shape:
            return (
                f"a canary has vectors of shape {after.shape} and had vectors of shape "
                f"{before.shape}"
            )
        distance, cosine = _compare(before.astype(np.float64), after.astype(np.float64))
        # NaN must not pass: a comparison with it is false.
        worst = max(worst, distance if np.isfinite(distance) else np.inf)
        least = min(least, cosine if np.isfinite(cosine) else -1.0)
    if tolerance.difference is not None and worst > tolerance.difference:
        return (
            f"a component differs by {worst:.2g}, and at most {tolerance.difference:.2g} is allowed"
        )
    if least < tolerance.cosine:
        return f"the lowest cosine is {least:.6f}, and at least {tolerance.cosine} is needed"
    return ""


def _compare(
    before: npt.NDArray[np.float64], after: npt.NDArray[np.float64]
) -> tuple[float, float]:
    """The largest difference of a component, in units of the norm, and the smallest cosine."""
    lengths, after_lengths = np.linalg.norm(before, axis=1), np.linalg.norm(after, axis=1)
    distances = np.abs(after - before).max(axis=1) / np.where(lengths > 0, lengths, 1)
    # NaN for a zero vector against another one, and for a vector that is not finite.
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = np.einsum("ij,ij->i", before, after) / (lengths * after_lengths)
    cosines[(lengths == 0) & (after_lengths == 0)] = 1.0
    return float(distances.max()), float(cosines.min())
