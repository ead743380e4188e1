"""One run at a time on one output: numbered epochs, each claimed once, and a beat.

``_e5spark/lock/`` holds ``0000007.json`` (who claimed epoch 7), ``0000007.beat`` (a counter that
the run raises while it lives) and ``0000007.released``. The highest epoch is the one that counts:
who finds it released, or its run dead, claims the next. A run that lost its epoch learns so from
``check``, which every commit is preceded by. Clocks of two machines are never compared.
"""

import json
import os
import re
import socket
import threading
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from uuid import getnode, uuid4

from e5spark.errors import ConflictError, E5SparkError, TransientError
from e5spark.tables.ledger.layout import STATE_DIRECTORY, last_epoch
from e5spark.tables.storage.protocol import Storage

DIRECTORY = f"{STATE_DIRECTORY}/lock"
_VERSION = 1
_BEATS = 4  # of a live run in one ttl
_CLAIM = re.compile(r"(\d+)\.json")
# Locks of this process: that its pid is alive says nothing about one it failed to release.
_held: set[str] = set()


@dataclass(frozen=True, kw_only=True)
class _Owner:
    """Which process holds an epoch, and how long its beat may stand still, in seconds."""

    version: int
    token: str
    host: str
    machine: str
    pid: int
    process_started: int | None
    started_at: str
    ttl: float


class Lock:
    """A claimed epoch; release it, or use it as a context manager."""

    def __init__(self, storage: Storage, *, epoch: int, owner: _Owner) -> None:
        self.epoch = epoch
        self._storage = storage
        self._owner = owner
        self._stop = threading.Event()
        self._trouble = ""
        _held.add(owner.token)
        self._beaten = time.monotonic()
        self._thread = threading.Thread(target=self._beat, name="e5spark lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises unless this run may still commit.

        Raises:
            ConflictError: If another run has taken the output over.
            TransientError: If others may soon take this run for dead, as its beat cannot be
                written, or if the storage does not answer.
        """
        silent = time.monotonic() - self._beaten
        if silent > self._owner.ttl * (_BEATS - 1) / _BEATS:
            raise TransientError(
                f"This run could not show for {silent:.0f} s that it lives, so it commits no more "
                f"to {self._storage.root}: {self._trouble or 'the process stood still.'} Start "
                "the same command again."
            )
        highest = _highest(self._storage.list(DIRECTORY))
        if highest != self.epoch:
            raise _conflict(self._storage, highest)

    def release(self) -> None:
        """Lets the next run begin; the files of earlier epochs go.

        Raises:
            TransientError: If the storage fails; the next run then takes this one for dead.
        """
        self._stop.set()
        self._thread.join()
        _held.discard(self._owner.token)
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

    def _beat(self) -> None:
        count = 0
        while True:
            began = time.monotonic()
            try:
                self._storage.put(_name(self.epoch, "beat"), str(count).encode())
                self._beaten, self._trouble = began, ""
                count += 1
            except Exception as error:  # whatever it is, the next beat may succeed
                self._trouble = str(error)
            if self._stop.wait(self._owner.ttl / _BEATS):
                return


def acquire(storage: Storage, *, ttl: float = 60.0) -> Lock:
    """Returns the lock of an output, taken over if the run that held it is dead.

    A dead run is known at once on the machine it ran on; from elsewhere its beat is watched for
    its ttl.

    Args:
        storage: The output.
        ttl: How many seconds this run may fail to beat before others may take it for dead.

    Raises:
        ConflictError: If another run holds it, or was faster.
    """
    # Looked for before the lock is: a live run may go on to name its records after a new epoch.
    last = last_epoch(storage)
    names = storage.list(DIRECTORY)
    highest = _highest(names)
    if highest and _file(highest, "released") not in names:
        _wait_until_dead(storage, highest)
    # Names of an epoch are never given again, even if somebody has removed the lock's files.
    epoch = max(highest, last) + 1
    owner = _this_process(ttl)
    claim = json.dumps(asdict(owner)).encode()
    # A store that repeats a request on its own finds its first try's file in the way.
    name = _name(epoch, "json")
    if not storage.create(name, claim) and storage.read(name) != claim:
        raise _conflict(storage, epoch)
    lock = Lock(storage, epoch=epoch, owner=owner)
    try:
        # A file of this number may have been cleaned up by a run that is further.
        lock.check()
        _clean(storage, epoch)
    except E5SparkError:
        lock.release()
        raise
    return lock


def _wait_until_dead(storage: Storage, epoch: int) -> None:
    """Returns once the epoch's run has released it or is known to be dead.

    Raises:
        ConflictError: If it lives, or another run took its place.
    """
    owner = _owner(storage, epoch)
    alive = _alive(owner)
    if alive:
        raise _conflict(storage, epoch)
    beat, since = storage.read(_name(epoch, "beat")), time.monotonic()
    while alive is None and time.monotonic() - since <= owner.ttl:
        time.sleep(owner.ttl / _BEATS / 4)
        names = storage.list(DIRECTORY)
        if _file(epoch, "released") in names:
            return
        if _highest(names) != epoch or storage.read(_name(epoch, "beat")) != beat:
            raise _conflict(storage, _highest(names))


def _owner(storage: Storage, epoch: int) -> _Owner:
    written = json.loads(storage.read(_name(epoch, "json")) or b"{}")
    if not written:
        raise ConflictError(f"Another run has just taken {storage.root}; wait until it is done.")
    if written["version"] != _VERSION:
        raise ConflictError(
            f"{storage.root} is locked by another version of e5spark (lock format "
            f"{written['version']}; this one knows {_VERSION}). Use that version."
        )
    return _Owner(**written)


def _conflict(storage: Storage, epoch: int) -> ConflictError:
    owner = _owner(storage, epoch)
    return ConflictError(
        f"Another run writes to {storage.root}: process {owner.pid} on {owner.host}, since "
        f"{owner.started_at}. Wait until it is done, or stop it; the same command then goes on "
        "where it ended."
    )


def _clean(storage: Storage, epoch: int) -> None:
    for name in storage.list(DIRECTORY):
        if int(name.partition(".")[0]) < epoch:
            storage.delete(f"{DIRECTORY}/{name}")


def _highest(names: list[str]) -> int:
    """The highest epoch that was claimed; 0 where there is none."""
    return max((int(claim[1]) for name in names if (claim := _CLAIM.fullmatch(name))), default=0)


def _file(epoch: int, kind: str) -> str:
    return f"{epoch:07d}.{kind}"


def _name(epoch: int, kind: str) -> str:
    return f"{DIRECTORY}/{_file(epoch, kind)}"


def _this_process(ttl: float) -> _Owner:
    return _Owner(
        version=_VERSION,
        token=uuid4().hex,
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        process_started=_process_started(os.getpid()),
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        ttl=ttl,
    )


def _machine() -> str:
    """Names where a pid means one process: a boot of a kernel, and a container in it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        # The network card; where none is found, a number that no other process shares.
        return f"{getnode():x}"


def _alive(owner: _Owner) -> bool | None:
    """Whether the owner's process lives; None where only its beat can tell."""
    if (owner.host, owner.machine) != (socket.gethostname(), _machine()):
        return None
    if owner.pid == os.getpid():
        return owner.token in _held
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    started = _process_started(owner.pid)
    if started is None or owner.process_started is None:
        return None
    return started == owner.process_started


def _process_started(pid: int) -> int | None:
    """When a process started, in ticks since the boot; -1 once it has ended; None if not known."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # After the name, which may hold anything: state, parent, ..., as proc(5) numbers them from 3.
    fields = stat.rpartition(")")[2].split()
    return -1 if fields[0] in "ZX" else int(fields[22 - 3])
