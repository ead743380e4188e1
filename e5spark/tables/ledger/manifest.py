"""The manifest: what the vectors of a table are, and how another run's vectors differ."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from e5spark.errors import ConflictError
from e5spark.tables.ledger.documents import FORMAT, read_document
from e5spark.tables.ledger.layout import MANIFEST
from e5spark.tables.storage.protocol import Storage


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What the vectors of a table are.

    Attributes:
        fingerprint: The digest of ``parts``.
        parts: What makes these vectors comparable; see ``e5spark.model.fingerprint``.
        schema: The schema of the table, as Spark's JSON.
        dim: Components of a vector.
        id: The column that identifies a row; None if there is none.
        table: The kind of table, such as ``parquet``.
        versions: The package versions of the run that created the table.
        canaries: Fixed texts and their vectors; None until a run has embedded some. They are added
            to a manifest of an earlier release.
        format: The format of the state file.
    """

    fingerprint: str
    parts: Mapping[str, Any]
    schema: Mapping[str, Any]
    dim: int
    id: str | None
    table: str
    versions: Mapping[str, str]
    canaries: Mapping[str, Any] | None = None
    format: int = FORMAT

    def __post_init__(self) -> None:
        """Raises ValueError, TypeError or KeyError where an inner value cannot be used."""
        for field in self.schema["fields"]:
            _ = field["name"], bare_type(field["type"])
        if not isinstance(self.parts.get("recipe"), Mapping):
            raise ValueError("its parts have no recipe")


def read_manifest(storage: Storage) -> Manifest | None:
    """Returns the manifest of a table; None if it has none.

    Raises:
        ConflictError: If it is damaged, or a later release of e5spark wrote it.
    """
    return read_document(storage, MANIFEST, Manifest)


def check_same(stored: Manifest, current: Manifest) -> None:
    """Raises unless two manifests describe the same vectors in the same kind of table.

    Raises:
        ConflictError: If something differs; the message names it.
    """
    if stored.fingerprint != current.fingerprint:
        raise ConflictError(
            "The output has other vectors, which must not be mixed with these: "
            f"{'; '.join(_differences(stored.parts, current.parts))}. Run with the output's model "
            "and options; or migrate: give a new output, and switch to it when it is complete."
        )
    if stored.table != current.table:
        raise ConflictError(
            f"The output is a {stored.table} table and not {current.table}; set output.format to "
            "match it, or give a new output."
        )
    if stored.id != current.id:
        raise ConflictError(
            f"The output was written with input.id = {stored.id!r}, this run has "
            f"{current.id!r}; give the same id, or a new output."
        )


_WORDS = {"weights": "model weights", "recipe.prompts": "prompts", "recipe.dim": "dim"}


def _differences(stored: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Returns what differs between two fingerprints, part by part: "dim is 384, this run's 192"."""
    before, after = _flat(stored), _flat(current)
    parts = [part for part in {**before, **after} if before.get(part) != after.get(part)]
    return [
        f"{_WORDS.get(part, part.removeprefix('recipe.'))} is {_short(before.get(part))}, this "
        f"run's is {_short(after.get(part))}"
        for part in parts
    ]


def _flat(parts: Mapping[str, Any]) -> dict[str, Any]:
    recipe = parts.get("recipe", {})
    top_level = {key: value for key, value in parts.items() if key != "recipe"}
    return {**top_level, **{f"recipe.{key}": value for key, value in recipe.items()}}


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    is_hash = isinstance(value, str) and len(value) == 64
    return f"{value[:12]}..." if is_hash else text  # type: ignore[index]


def bare_type(kind: Any) -> Any:  # noqa: ANN401  # Spark's JSON
    """Returns a type without nullability and metadata, which files do not keep."""
    if isinstance(kind, dict):
        dropped = {"nullable", "containsNull", "valueContainsNull", "metadata"}
        return {key: bare_type(part) for key, part in kind.items() if key not in dropped}
    return [bare_type(part) for part in kind] if isinstance(kind, list) else kind
