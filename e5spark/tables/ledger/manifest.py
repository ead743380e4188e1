"""What the vectors of a table are, written down once; and how those of another run differ."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from e5spark.errors import ConflictError
from e5spark.tables.ledger.layout import FORMAT, STATE_DIRECTORY, read_document
from e5spark.tables.storage.protocol import Storage

MANIFEST = f"{STATE_DIRECTORY}/manifest.json"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What the vectors of a table are.

    Attributes:
        fingerprint: The digest of ``parts``.
        parts: What makes these vectors comparable; see ``e5spark.fingerprint``.
        schema: The table's, as Spark's JSON.
        dim: Components of a vector.
        id: The column that names a row; None if there is none.
        table: The kind of table, such as ``parquet``.
        versions: The packages that began the table.
    """

    fingerprint: str
    parts: Mapping[str, Any]
    schema: Mapping[str, Any]
    dim: int
    id: str | None
    table: str
    versions: Mapping[str, str]
    format: int = FORMAT


def read_manifest(storage: Storage) -> Manifest | None:
    """Returns the manifest of a table; None if it has none.

    Raises:
        ConflictError: If a later release of e5spark wrote it.
    """
    document = read_document(storage, MANIFEST)
    return None if document is None else Manifest(**document)


def check_same(stored: Manifest, wanted: Manifest) -> None:
    """Raises unless two manifests describe the same vectors in the same columns.

    Raises:
        ConflictError: If something differs; the message names it.
    """
    if stored.fingerprint != wanted.fingerprint:
        raise ConflictError(
            "The output holds other vectors, which must not be mixed with these: "
            f"{'; '.join(_differences(stored.parts, wanted.parts))}. Run with what it was made "
            "with; or migrate: give a new output, and go over to it when it is complete."
        )
    if stored.table != wanted.table:
        raise ConflictError(
            f"The output is a {stored.table} table and not {wanted.table}; give output.format."
        )
    if stored.id != wanted.id:
        raise ConflictError(
            f"The output was written with input.id = {stored.id!r}, this run has "
            f"{wanted.id!r}; give the same id, or a new output."
        )
    before, after = _columns(stored.schema), _columns(wanted.schema)
    if before != after:
        gone = [f"{name} {kind}" for name, kind in before.items() if after.get(name) != kind]
        more = [f"{name} {kind}" for name, kind in after.items() if before.get(name) != kind]
        raise ConflictError(
            "The output has other columns than this run would write: it has "
            f"{', '.join(gone) or 'no others'}; this run has {', '.join(more) or 'no others'}"
            f"{'' if gone or more else ', in another order'}. Choose columns with input.columns, "
            "or give a new output."
        )


_WORDS = {"weights": "model weights", "recipe.prompts": "prompts", "recipe.dim": "dim"}


def _differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Returns what differs between two fingerprints, part by part: "dim is 384, this run's 192"."""
    before, after = _flat(stored), _flat(wanted)
    parts = [part for part in {**before, **after} if before.get(part) != after.get(part)]
    return [
        f"{_WORDS.get(part, part.removeprefix('recipe.'))} is {_short(before.get(part))}, this "
        f"run's is {_short(after.get(part))}"
        for part in parts
    ]


def _flat(parts: Mapping[str, Any]) -> dict[str, Any]:
    recipe = parts.get("recipe", {})
    rest = {key: value for key, value in parts.items() if key != "recipe"}
    return {**rest, **{f"recipe.{key}": value for key, value in recipe.items()}}


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    is_hash = isinstance(value, str) and len(value) == 64
    return f"{value[:12]}..." if is_hash else text  # type: ignore[index]


def _columns(schema: Mapping[str, Any]) -> dict[str, str]:
    return {each["name"]: json.dumps(_nullable(each["type"])) for each in schema["fields"]}


def _nullable(kind: Any) -> Any:  # noqa: ANN401  # Spark's JSON
    """A type without what files do not keep: whether something may be null."""
    if isinstance(kind, dict):
        dropped = {"nullable", "containsNull", "valueContainsNull", "metadata"}
        return {key: _nullable(each) for key, each in kind.items() if key not in dropped}
    return [_nullable(each) for each in kind] if isinstance(kind, list) else kind
