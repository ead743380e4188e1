"""The identities of a run: a worker's cache key, and everything that makes vectors comparable."""

import hashlib
import json
from dataclasses import asdict, dataclass

from e5spark.model.registry import Recipe

# Increased whenever the preparation of texts changes in a way that can change a vector.
TEXT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The content of a checkpoint's files.

    Attributes:
        weights: sha256 of the tensors and the config, by ``e5spark.model.content``. In tables that
            e5spark 0.1.0 created: sha256 over the weight files and config.json.
        tokenizer: sha256 over the tokenizer's files.
    """

    weights: str
    tokenizer: str


@dataclass(frozen=True, kw_only=True)
class EngineKey:
    """The key of a loaded model in a worker's cache; query and passage share it."""

    weights: str
    tokenizer: str
    engine: str
    precision: str
    device: str


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Everything that makes two vectors comparable; vectors of two fingerprints never mix.

    Batch sizes, devices and thread counts are not in it: they do not change a vector beyond the
    promised tolerance.
    """

    weights: str
    tokenizer: str
    recipe: Recipe
    precision: str
    output_type: str = "float32"
    calibration: str | None = None
    text_version: int = TEXT_VERSION

    def as_dict(self) -> dict[str, object]:
        """Returns the parts as plain data, for a manifest or a report."""
        parts = asdict(self)
        # The option was called ``prompted`` when the first fingerprints were made.
        parts["recipe"]["prompted"] = parts["recipe"].pop("already_prompted")
        return parts

    @property
    def digest(self) -> str:
        """Returns the sha256 of the parts as canonical JSON: 64 hex digits."""
        canonical = json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()
