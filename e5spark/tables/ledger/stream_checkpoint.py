"""A stream's checkpoint and the one table that it is read into."""

from uuid import uuid4

from e5spark.errors import ConflictError
from e5spark.tables.ledger.layout import FORMAT, STATE_DIRECTORY, dumped, read_document
from e5spark.tables.storage.protocol import Storage

_NAME = "e5spark.json"


def claim(checkpoint: Storage, output: Storage) -> None:
    """Ties a checkpoint to an output, whose lock is held.

    What a checkpoint has passed never comes again: read on into another table, or into one that
    was made anew, it would leave rows out without a word.

    Raises:
        ConflictError: If the checkpoint was read from into another table, or by a later release.
    """
    known = read_document(checkpoint, _NAME)
    token = None if known is None else known["token"]
    if token is not None and output.read(_mark(token)) is not None:
        return
    if checkpoint.list("offsets"):
        raise ConflictError(
            f"What the checkpoint {checkpoint.root} has passed went into another output than "
            f"{output.root}, or into one that is gone, and would not come again. Give a new "
            "input.checkpoint_location: rows that the output has already are known by their ids."
        )
    token = token or uuid4().hex
    document = dumped({"format": FORMAT, "token": token})
    output.put(_mark(token), document)
    checkpoint.put(_NAME, document)


def _mark(token: str) -> str:
    return f"{STATE_DIRECTORY}/streams/{token}.json"
