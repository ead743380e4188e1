"""The identities of a run: a worker's cache key, and everything that makes vectors comparable."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

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


_LONG_TEXT = {
    "truncate": "a longer text is cut",
    "split": "a longer text is split into windows that share {overlap} tokens, each with a row",
    "mean": "a longer text gets the mean of its windows, which share {overlap} tokens",
}
_ALREADY_PROMPTED = {
    "report": "a text that already begins with a prompt gets another, and is counted",
    "refuse": "a text that already begins with a prompt is an error",
    "keep": "a text that already begins with a prompt gets no other",
}


def in_words(parts: Mapping[str, Any]) -> list[str]:
    """Returns what a fingerprint is the hash of, as sentences without a full stop.

    Args:
        parts: ``Fingerprint.as_dict``, as a manifest of any release has it.
    """
    recipe = parts["recipe"]
    length = "unit length" if recipe.get("normalize", True) else "any length"
    prompts = [f"{role} {prefix!r}" for role, prefix in (recipe.get("prompts") or {}).items()]
    long_text = _LONG_TEXT.get(recipe.get("long_text"), "").format(overlap=recipe.get("overlap"))
    hashes = [
        f"{name} {str(parts[name])[:12]}"
        for name in ("weights", "tokenizer", "calibration")
        if parts.get(name)
    ]
    sentences = [
        f"{recipe.get('dim')} components of {length}, stored as {parts.get('output_type')}",
        f"computed in {parts.get('precision')}, {recipe.get('pooling')} pooling",
        f"prompts: {', '.join(prompts) or 'none'}",
        _ALREADY_PROMPTED.get(recipe.get("prompted"), ""),
        f"at most {recipe.get('max_tokens')} tokens{long_text and f'; {long_text}'}",
        ", ".join(hashes),
    ]
    return [sentence for sentence in sentences if sentence]
