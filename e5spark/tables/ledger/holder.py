"""The last claim of a lock: whose it is, and whether that process seems to be alive."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from e5spark.errors import ConflictError
from e5spark.names import redacted
from e5spark.tables.ledger.documents import read_document
from e5spark.tables.ledger.layout import LOCK
from e5spark.tables.ledger.owner import Owner, is_alive
from e5spark.tables.storage.protocol import Storage

_CLAIM = re.compile(r"(\d+)\.json")
_LIFE = {
    True: "the process is alive",
    False: "the process is dead, so the next run takes over at once",
    None: "this machine cannot see the process, so the next run watches its heartbeat first",
}


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The last claim of a lock.

    Attributes:
        epoch: The number of the run.
        owner: The process that claimed it; None if the claim is damaged.
        is_released: Whether the run has ended and released the lock.
        is_alive: Whether the process is alive; None if only its heartbeat can tell.
        heartbeat_age: Seconds since its last heartbeat, from the store's clock to this machine's;
            None if there is none.
        problem: How the claim is damaged; empty if it is not.
    """

    epoch: int
    owner: Owner | None
    is_released: bool
    is_alive: bool | None
    heartbeat_age: float | None
    problem: str = ""

    @property
    def sentence(self) -> str:
        """Says who holds the lock, or held it last."""
        whose = (
            "an unknown process, because the claim is damaged"
            if self.owner is None
            else f"process {self.owner.pid} on {self.owner.host}, since {self.owner.started_at}"
        )
        if self.is_released:
            return f"The lock is free; run {self.epoch} released it ({whose})."
        heartbeat = (
            "it has no heartbeat"
            if self.heartbeat_age is None
            else f"its last heartbeat was {self.heartbeat_age:.0f} s ago"
        )
        life = f"; {_LIFE[self.is_alive]}" if self.owner is not None else ""
        return f"Run {self.epoch} holds the lock: {whose}; {heartbeat}{life}."


def last_holder(storage: Storage) -> Holder | None:
    """Returns the last claim of an output's lock; None if nobody has ever claimed it.

    Raises:
        ConflictError: If a later release of e5spark claimed it.
    """
    names = storage.list(LOCK)
    epoch = highest(names)
    if not epoch:
        return None
    owner, problem = None, ""
    try:
        owner = owner_of(storage, epoch)
    except ConflictError as error:
        if error.__cause__ is None:  # not damaged: of a later release, or just removed
            raise
        problem = str(error)
    modified = storage.modified(claim_path(epoch, "heartbeat"))
    age = None if modified is None else (datetime.now(UTC) - modified).total_seconds()
    return Holder(
        epoch=epoch,
        owner=owner,
        is_released=claim_file(epoch, "released") in names,
        is_alive=None if owner is None else is_alive(owner),
        heartbeat_age=None if age is None else max(age, 0.0),
        problem=problem,
    )


def owner_of(storage: Storage, epoch: int) -> Owner:
    """Returns the process that claimed an epoch.

    Raises:
        ConflictError: If the claim is damaged, of a later release, or has just been removed.
    """
    owner = read_document(
        storage,
        claim_path(epoch, "json"),
        Owner,
        remedy="Make sure that no run writes to this output, run e5spark unlock with the job file, "
        "and start the same command again.",
    )
    if owner is None:
        raise ConflictError(
            f"Another run has just taken {redacted(storage.root)}; start the same command again "
            "when it has ended."
        )
    return owner


def highest(names: list[str]) -> int:
    """Returns the highest epoch that was claimed, from the names in a lock; 0 if there is none."""
    return max((int(claim[1]) for name in names if (claim := _CLAIM.fullmatch(name))), default=0)


def claim_file(epoch: int, kind: str) -> str:
    """Returns the name of a file of an epoch: ``json``, ``heartbeat`` or ``released``."""
    return f"{epoch:07d}.{kind}"


def claim_path(epoch: int, kind: str) -> str:
    """Returns the path of a file of an epoch below the table's directory."""
    return f"{LOCK}/{claim_file(epoch, kind)}"
