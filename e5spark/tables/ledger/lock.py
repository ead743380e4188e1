"""One run at a time on one output: numbered epochs, each claimed once, and a heartbeat.

``_e5spark/lock/`` has ``0000007.json`` (who claimed epoch 7), ``0000007.heartbeat`` (a counter that
the run increments while it lives) and ``0000007.released``. Only the highest epoch counts: a run
that finds it released, or its owner dead, claims the next one. A run that has lost its epoch learns
it from ``check``, which runs before every commit. Clocks of two machines are never compared.
"""

import re
import threading
import time
from dataclasses import asdict
from types import TracebackType

from e5spark.errors import ConflictError, E5SparkError, TransientError
from e5spark.names import redacted
from e5spark.tables.ledger.documents import dumped, read_document
from e5spark.tables.ledger.layout import LOCK, last_epoch
from e5spark.tables.ledger.owner import Owner, is_alive, own_tokens, this_process
from e5spark.tables.storage.protocol import Storage

_HEARTBEATS = 4  # of a live run in each ttl
_CLAIM = re.compile(r"(\d+)\.json")


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
        highest = _highest(self._storage.list(LOCK))
        if highest != self.epoch:
            raise _conflict(self._storage, highest)

    def release(self) -> None:
        """Lets the next run begin.

        Raises:
            TransientError: If the storage fails; the next run then waits until this run is dead.
        """
        self._stop.set()
        self._thread.join()
        own_tokens.discard(self._owner.token)
        self._storage.put(_name(self.epoch, "released"), b"")

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
                self._storage.put(_name(self.epoch, "heartbeat"), str(count).encode())
                self._last_heartbeat, self._trouble = began, ""
                count += 1
            except Exception as error:  # whatever it is, the next heartbeat may succeed
                self._trouble = str(error)
            if self._stop.wait(self._owner.ttl / _HEARTBEATS):
                return


def acquire(storage: Storage, *, ttl: float = 60.0) -> Lock:
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
    highest = _highest(names)
    if highest and _file(highest, "released") not in names:
        _wait_until_dead(storage, highest)
    # The number of an epoch is never reused, even if somebody has removed the lock's files.
    epoch = max(highest, last) + 1
    owner = this_process(ttl)
    claim = dumped(asdict(owner))
    # A store that retries a request by itself finds the file of its first attempt.
    name = _name(epoch, "json")
    if not storage.create(name, claim) and storage.read(name) != claim:
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
    owner = _owner(storage, epoch)
    alive = is_alive(owner)
    if alive:
        raise _conflict(storage, epoch)
    heartbeat, since = storage.read(_name(epoch, "heartbeat")), time.monotonic()
    while alive is None and time.monotonic() - since <= owner.ttl:
        time.sleep(owner.ttl / _HEARTBEATS / 4)
        names = storage.list(LOCK)
        if _file(epoch, "released") in names:
            return
        if _highest(names) != epoch or storage.read(_name(epoch, "heartbeat")) != heartbeat:
            raise _conflict(storage, _highest(names))


def _owner(storage: Storage, epoch: int) -> Owner:
    name = _name(epoch, "json")
    owner = read_document(
        storage,
        name,
        Owner,
        remedy="Make sure that no run writes to this output, remove the file, and start the same "
        "command again.",
    )
    if owner is None:
        raise ConflictError(
            f"Another run has just taken {redacted(storage.root)}; start the same command again "
            "when it has ended."
        )
    return owner


def _conflict(storage: Storage, epoch: int) -> ConflictError:
    owner = _owner(storage, epoch)
    return ConflictError(
        f"Another run writes to {redacted(storage.root)}: process {owner.pid} on {owner.host}, "
        f"since {owner.started_at}. Wait until it ends, or stop it; the same command then "
        "continues where that run ended."
    )


def _clean(storage: Storage, epoch: int) -> None:
    for name in storage.list(LOCK):
        if (digits := name.partition(".")[0]).isdecimal() and int(digits) < epoch:
            storage.delete(f"{LOCK}/{name}")


def _highest(names: list[str]) -> int:
    """The highest epoch that was claimed; 0 if there is none."""
    return max((int(claim[1]) for name in names if (claim := _CLAIM.fullmatch(name))), default=0)


def _file(epoch: int, kind: str) -> str:
    return f"{epoch:07d}.{kind}"


def _name(epoch: int, kind: str) -> str:
    return f"{LOCK}/{_file(epoch, kind)}"
