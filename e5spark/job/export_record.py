"""``export.json``: what an export is, and whether a later one can start from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from e5spark.errors import ConflictError
from e5spark.names import redacted
from e5spark.tables.ledger.documents import FORMAT, read_document
from e5spark.tables.storage.protocol import Storage

DOCUMENT = "export.json"
VECTORS, DELETED, KEYS = "vectors", "deleted", "keys"
_TAKE_ALL = "Export everything, without --since, and load it into a new index."


@dataclass(frozen=True, kw_only=True)
class ExportRecord:
    """What an export is; ``export.json``.

    Attributes:
        state: ``started``, then ``done``.
        output: The table, as the user names it.
        run: The number of the table's last run.
        export: The export's own name, a random UUID: what an index that has loaded it keeps.
        since: The name of the export that this one starts from; None if it has all rows.
        exported_at: When it was begun, in UTC by the driver's clock.
        id: The table's ``column``, the ``type`` of the exported id, how it is ``made_by`` the
            export (``table``: as it is), and with which ``namespace``.
        vector: The table's ``column``, the ``type`` of the exported vectors, their ``dim``, and
            the ``fingerprint`` that vectors of queries must have.
        columns: The further columns.
        counts: ``rows`` of the table; ``ok``: rows that an index has once the export is loaded;
            ``not_ok``: all others, which ``by_status`` tells apart; ``exported``: rows in
            ``vectors``, which are ``new`` or ``changed``; ``unchanged``; ``deleted``: ids.
        by_status: Rows of the table by status; ``not_embedded`` have none.
        format: The format of the file.
    """

    state: Literal["started", "done"]
    output: str
    run: int
    export: str
    since: str | None
    exported_at: str
    id: Mapping[str, Any]
    vector: Mapping[str, Any]
    columns: tuple[str, ...]
    counts: Mapping[str, int] = field(default_factory=dict)
    by_status: Mapping[str, int] = field(default_factory=dict)
    format: int = FORMAT

    def __post_init__(self) -> None:
        """Raises ValueError unless the moment is in ISO 8601."""
        datetime.fromisoformat(self.exported_at)


def check_free(files: Storage) -> None:
    """Checks that a directory is empty, or has an export that did not end."""
    names = set(files.list(""))
    if not names:
        return
    record = read_document(files, DOCUMENT, ExportRecord, remedy="Give a new directory.")
    if record is None or record.state == "done" or names - {VECTORS, DELETED, KEYS, DOCUMENT}:
        raise ConflictError(
            f"{redacted(files.root)} already exists and was not overwritten; give a new directory."
        )


def earlier_export(files: Storage, record: ExportRecord) -> ExportRecord:
    """Returns an earlier export, whose rows are comparable with the rows of this one."""
    earlier = read_document(files, DOCUMENT, ExportRecord, remedy=_TAKE_ALL)
    if earlier is None or earlier.state != "done":
        raise ConflictError(
            f"{redacted(files.root)} is not a complete export, so nobody can tell what an index "
            f"has of it. Give the directory of the export that the index has. {_TAKE_ALL}"
        )
    parts = {"id": "ids", "vector": "vectors", "columns": "columns"}
    other = [
        word for name, word in parts.items() if getattr(earlier, name) != getattr(record, name)
    ]
    if other:
        raise ConflictError(
            f"The export {redacted(files.root)} has other {' and '.join(other)}, so its index has "
            "no row that is like those of this export. Export with the options of the earlier one. "
            f"Otherwise: {_TAKE_ALL[0].lower()}{_TAKE_ALL[1:]}"
        )
    return earlier


def check_complete(earlier: ExportRecord, kinds: Mapping[str, int], path: str) -> None:
    """Checks that all keys of the earlier export are there: a lost key is a lost deletion."""
    keys = kinds["unchanged"] + kinds["changed"] + kinds["deleted"]
    if keys != earlier.counts["ok"]:
        raise ConflictError(
            f"The export {redacted(path)} has {keys} keys of {earlier.counts['ok']}: files in "
            f"{KEYS} are lost, or not of this export. {_TAKE_ALL}"
        )
