"""Processes of this machine, as /proc lists them, and waiting for them."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

POLL_SECONDS, WAIT_SECONDS = 0.01, 400


def processes() -> list[int]:
    """All processes of the machine."""
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def parent(pid: int) -> int:
    """The parent of a process; 0 if it is gone."""
    return 0 if state(pid) in "ZX" else int(stat(pid)[1])


def descendants(pid: int) -> list[int]:
    """The children of a process, their children, and so on."""
    children: dict[int, list[int]] = {}
    for other in processes():
        children.setdefault(parent(other), []).append(other)
    found = [pid]
    for process in found:  # grows meanwhile
        found += children.get(process, [])
    return found[1:]


def state(pid: int) -> str:
    """R if a process runs now; S if it waits; X if it is gone."""
    return stat(pid)[0]


def stat(pid: int) -> list[str]:
    """State, parent, ..., as proc(5) numbers them from 3."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return ["X", "0"]


def is_java(pid: int) -> bool:
    """Whether a process is a JVM."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip() == "java"
    return False


def await_(condition: Callable[[], bool]) -> None:
    """Returns once a condition holds; fails if it does not in time."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(POLL_SECONDS)
