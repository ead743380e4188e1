"""One run at a time on one output: numbered epochs, each claimed once, and a heartbeat.

``_e5spark/lock/`` has ``0000007.json`` (who claimed epoch 7), ``0000007.heartbeat`` (a counter that
the run increments while it lives) and ``0000007.released``. Only the highest epoch counts: a run
that finds it released, or its owner dead, claims the next one. A run that has lost its epoch learns
it from ``check``, which runs before every commit. Clocks of two machines are never compared.
"""

import threading
import time
from dataclasses import asdict
from types import TracebackType

from e5spark.errors import ConflictError, E5SparkError, TransientError
from e5spark.names import redacted
from e5spark.tables.ledger.documents import dumped
from e5spark.tables.ledger.holder import (
    Holder,
    claim_file,
    claim_path,
    highest,
    last_holder,
    owner_of,
)
from e5spark.tables.ledger.layout import LOCK, last_epoch
from e5spark.tables.ledger.owner import Owner, is_alive, own_tokens, this_process
from e5spark.tables.storage.protocol import Storage

_TTL = 60.0  # seconds
_HEARTBEATS = 4  # of a live run in each ttl


class Lock:
    """A claimed epoch; release it, or use it as a context manager."""

    def __init__(self, storage: Storage, *, epoch: int, owner: Owner) -> None:
        self.epoch = epoch
        self._storage = storage
        self._owner = owner
        self._stop = threading.Event()
        self._trouble = ""
        own_tokens.add(owner.token)
        self._last_heartbeat = time.monotonic()
        self._thread = threading.Thread(
            target=self._send_heartbeats, name="e5spark lock", daemon=True
        )
        self._thread.start()

    def check(self) -> None:
        """Raises unless this run may still commit.

        Raises:
            ConflictError: If another run has taken the output over.
            TransientError: If others may soon take this run for dead because it cannot write its
                heartbeat, or if the storage does not answer.
        """
        silent = time.monotonic() - self._last_heartbeat
        if silent > self._owner.ttl * (_HEARTBEATS - 1) / _HEARTBEATS:
            raise TransientError(
                f"This run has not written its heartbeat for {silent:.0f} s, so it no longer "
                f"commits to {redacted(self._storage.root)}: "
                f"{self._trouble or 'the process was paused.'} Start the same command again."
            )
        epoch = highest(self._storage.list(LOCK))
        if epoch != self.epoch:
            raise _conflict(self._storage, epoch)

    def release(self) -> None:
        """Lets the next run begin.

        Raises:
            TransientError: If the storage fails; the next run then waits until this run is dead.
        """
        self._stop.set()
        self._thread.join()
        own_tokens.discard(self._owner.token)
        self._storage.put(claim_path(self.epoch, "released"), b"")

    def __enter__(self) -> "Lock":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.release()
        except E5SparkError:
            if error is None:
                raise

    def _send_heartbeats(self) -> None:
        count = 0
        while True:
            began = time.monotonic()
            try:
                self._storage.put(claim_path(self.epoch, "heartbeat"), str(count).encode())
                self._last_heartbeat, self._trouble = began, ""
                count += 1
            except Exception as error:  # whatever it is, the next heartbeat may succeed
                self._trouble = str(error)
            if self._stop.wait(self._owner.ttl / _HEARTBEATS):
                return


def acquire(storage: Storage, *, ttl: float = _TTL) -> Lock:
    """Returns the lock of an output, taken over if its holder is dead.

    On the holder's machine its death is detected at once; on any other its heartbeat is watched
    for one ttl.

    Args:
        storage: The output.
        ttl: Seconds without a heartbeat after which others may take this run for dead.

    Raises:
        ConflictError: If another run holds the lock, or claims it first.
    """
    # Read before the lock's directory: a live run may name records after a newer epoch meanwhile.
    last = last_epoch(storage)
    names = storage.list(LOCK)
    claimed = highest(names)
    if claimed and claim_file(claimed, "released") not in names:
        _wait_until_dead(storage, claimed)
    # The number of an epoch is never reused, even if somebody has removed the lock's files.
    return _claim(storage, max(claimed, last) + 1, ttl)


def unlock(storage: Storage, *, force: bool = False) -> Holder | None:
    """Takes the lock away from a run that has not released it, and releases it.

    Nothing but the lock changes. The next epoch is claimed and released, as by a run that takes
    over and ends at once: should the holder live after all, it can no longer commit.

    Args:
        storage: The output.
        force: Whether to do so although the holder seems to be alive.

    Returns:
        The holder as it was before; None if nobody has ever claimed the lock.

    Raises:
        ConflictError: If the holder seems to be alive, or another run claims the lock meanwhile.
    """
    last = last_epoch(storage)
    holder = last_holder(storage)
    if holder is None or holder.is_released:
        return holder
    if not force and _seems_alive(storage, holder):
        raise ConflictError(
            f"{holder.sentence} Its lock stays, because its heartbeat is fresh or its process is "
            "alive. Stop that run, and start the same command again; or, if it hangs and cannot be "
            "stopped, add --force: it can then no longer commit."
        )
    _claim(storage, max(holder.epoch, last) + 1, _TTL).release()
    return holder


def _claim(storage: Storage, epoch: int, ttl: float) -> Lock:
    """Returns the lock with an epoch that nobody has claimed.

    Raises:
        ConflictError: If another run claims it first.
    """
    owner = this_process(ttl)
    claim = dumped(asdict(owner))
    # A store that retries a request by itself finds the file of its first attempt.
    path = claim_path(epoch, "json")
    if not storage.create(path, claim) and storage.read(path) != claim:
        raise _conflict(storage, epoch)
    lock = Lock(storage, epoch=epoch, owner=owner)
    try:
        # A later run may have removed the files of this epoch before this claim.
        lock.check()
        _clean(storage, epoch)
    except E5SparkError:
        lock.release()
        raise
    return lock


def _wait_until_dead(storage: Storage, epoch: int) -> None:
    """Returns once the epoch's run has released it or is dead.

    Raises:
        ConflictError: If the run lives, or another run took its place.
    """
    owner = owner_of(storage, epoch)
    alive = is_alive(owner)
    if alive or (alive is None and not _falls_silent(storage, epoch, owner.ttl)):
        raise _conflict(storage, highest(storage.list(LOCK)))


def _seems_alive(storage: Storage, holder: Holder) -> bool:
    """Returns whether a holder is alive, as far as this machine can see or hear within one ttl."""
    if holder.is_alive is not None:
        return holder.is_alive
    ttl = _TTL if holder.owner is None else holder.owner.ttl
    return not _falls_silent(storage, holder.epoch, ttl)


def _falls_silent(storage: Storage, epoch: int, ttl: float) -> bool:
    """Returns whether an epoch is released, or has no heartbeat while it is watched for one ttl."""
    heartbeat, since = storage.read(claim_path(epoch, "heartbeat")), time.monotonic()
    while time.monotonic() - since <= ttl:
        time.sleep(ttl / _HEARTBEATS / 4)
        names = storage.list(LOCK)
        if claim_file(epoch, "released") in names:
            return True
        if highest(names) != epoch or storage.read(claim_path(epoch, "heartbeat")) != heartbeat:
            return False
    return True


def _conflict(storage: Storage, epoch: int) -> ConflictError:
    owner = owner_of(storage, epoch)
    return ConflictError(
        f"Another run writes to {redacted(storage.root)}: process {owner.pid} on {owner.host}, "
        f"since {owner.started_at}. Wait until it ends, or stop it; the same command then "
        "continues where that run ended."
    )


def _clean(storage: Storage, epoch: int) -> None:
    for name in storage.list(LOCK):
        if (digits := name.partition(".")[0]).isdecimal() and int(digits) < epoch:
            storage.delete(f"{LOCK}/{name}")
