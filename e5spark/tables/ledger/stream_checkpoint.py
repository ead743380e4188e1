"""Ties a stream checkpoint to the table that its stream is read into."""

from dataclasses import asdict, dataclass
from uuid import uuid4

from e5spark.errors import ConflictError
from e5spark.names import redacted
from e5spark.tables.ledger.documents import FORMAT, dumped, read_document
from e5spark.tables.ledger.layout import STREAMS
from e5spark.tables.storage.protocol import Storage

_NAME = "e5spark.json"


@dataclass(frozen=True, kw_only=True)
class _Claim:
    """The state file that a checkpoint and its output share."""

    token: str
    format: int = FORMAT


def claim(checkpoint: Storage, output: Storage) -> None:
    """Ties a stream checkpoint to an output whose lock is held.

    A stream never repeats what its checkpoint has passed: read into another table, or into a
    table that was created again, it would silently leave rows out.

    Raises:
        ConflictError: If the checkpoint belongs to another table or a later release, or is
            damaged.
    """
    stored = read_document(
        checkpoint,
        _NAME,
        _Claim,
        remedy="Restore it from a backup, or give a new input.checkpoint_location: rows that the "
        "output has already are recognized by their ids.",
    )
    if stored is not None and output.read(_mark(stored.token)) is not None:
        return
    if checkpoint.list("offsets"):
        raise ConflictError(
            f"The rows that the checkpoint {redacted(checkpoint.root)} has passed went into "
            f"another output than {redacted(output.root)}, or into one that was removed, and will "
            "not be read again. Give a new input.checkpoint_location: rows that the output has "
            "already are recognized by their ids."
        )
    claimed = stored or _Claim(token=uuid4().hex)
    document = dumped(asdict(claimed))
    output.put(_mark(claimed.token), document)
    checkpoint.put(_NAME, document)


def _mark(token: str) -> str:
    return f"{STREAMS}/{token}.json"
