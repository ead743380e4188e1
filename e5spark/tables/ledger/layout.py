"""``_e5spark`` in a table's directory: where the documents lie that say what e5spark knows of it.

Readers of Parquet and Delta pass over it::

    manifest.json            what the vectors are; created once, checked by every run
    lock/                    one run at a time
    streams/<token>.json     a checkpoint whose stream is read into this table
    work/<epoch>/            what a run has to embed
    staging/<record>/        rows that are embedded but not visible yet, as Parquet files
    commits/<record>.json    recorded and not yet visible: whoever holds the lock finishes it
    done/<record>.json       recorded and visible; the last ones

Each document carries the format version it was written in.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from e5spark.errors import ConflictError
from e5spark.tables.storage.protocol import Storage

STATE_DIRECTORY = "_e5spark"
COMMITS, DONE = f"{STATE_DIRECTORY}/commits", f"{STATE_DIRECTORY}/done"
STAGING, WORK = f"{STATE_DIRECTORY}/staging", f"{STATE_DIRECTORY}/work"
FORMAT = 1


def is_begun(storage: Storage) -> bool:
    """Returns whether a run of e5spark has ever begun here, finished or not."""
    return bool(storage.list(STATE_DIRECTORY))


def has_commits(storage: Storage) -> bool:
    """Returns whether anything has ever been committed here, visible or not."""
    return bool(storage.list(COMMITS) or storage.list(DONE))


def last_epoch(storage: Storage) -> int:
    """Returns the highest epoch that anything but the lock is named after; 0 if there is none."""
    names = [name for place in (COMMITS, DONE, STAGING, WORK) for name in storage.list(place)]
    return max((numbers(name)[0] for name in names if numbers(name)), default=0)


def numbers(name: str) -> list[int]:
    """Returns the numbers that the name of a record is made of: the epoch comes first."""
    return [int(part) for part in re.findall(r"\d+", name)]


def dumped(document: Mapping[str, Any]) -> bytes:
    """Returns a document, with its format, as a file."""
    return json.dumps(document, indent=1, ensure_ascii=False).encode()


def read_document(storage: Storage, name: str) -> dict[str, Any] | None:
    """Returns a document; None if there is none of this name.

    Raises:
        ConflictError: If a later release of e5spark wrote it.
    """
    data = storage.read(name)
    if data is None:
        return None
    document: dict[str, Any] = json.loads(data)
    if document["format"] > FORMAT:
        raise ConflictError(
            f"{name} has format {document['format']}; this e5spark knows up to {FORMAT}. "
            "Use the release that wrote it, or a later one."
        )
    return document
