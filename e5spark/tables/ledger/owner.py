"""The process that holds a lock, and whether it is alive."""

import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import getnode, uuid4

from e5spark.tables.ledger.documents import FORMAT

# Locks of this process: its pid being alive says nothing about a lock that it failed to release.
own_tokens: set[str] = set()
_LONGEST_TTL = 3600.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The process that claimed an epoch.

    Attributes:
        token: Random; no two claims share it.
        host: The name of its machine, for messages.
        machine: The scope in which its pid is unique; see ``_machine``.
        pid: The process.
        process_started: When it started, in ticks since the boot; None if unknown.
        started_at: When the run started, in UTC, for messages.
        ttl: Seconds without a heartbeat after which others may take the run for dead.
        format: The format of the state file.
    """

    token: str
    host: str
    machine: str
    pid: int
    process_started: int | None
    started_at: str
    ttl: float
    format: int = FORMAT

    def __post_init__(self) -> None:
        """Raises ValueError for a process or a time that no run has."""
        if not 0 < self.pid < 1 << 31:
            raise ValueError(f"pid is {self.pid}")
        if not 0 < self.ttl <= _LONGEST_TTL:  # nor NaN: others wait for as long
            raise ValueError(f"ttl is {self.ttl}")


def this_process(ttl: float) -> Owner:
    """Returns this process as the owner of a new lock, with a token of its own."""
    return Owner(
        token=uuid4().hex,
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        process_started=_process_started(os.getpid()),
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        ttl=ttl,
    )


def _machine() -> str:
    """Returns the scope in which a pid is unique: a boot of the kernel, and a container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        # The address of the network card; without one, a number that no other process shares.
        return f"{getnode():x}"


def is_alive(owner: Owner) -> bool | None:
    """Returns whether the owner's process is alive; None if only its heartbeat can tell."""
    if (owner.host, owner.machine) != (socket.gethostname(), _machine()):
        return None
    if owner.pid == os.getpid():
        return owner.token in own_tokens
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
    """Returns a process's start in ticks since the boot; -1 if it has ended; None if unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # After the name, which may contain anything: state, parent, ..., numbered by proc(5) from 3.
    fields = stat.rpartition(")")[2].split()
    return -1 if fields[0] in "ZX" else int(fields[22 - 3])
