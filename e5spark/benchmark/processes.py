"""CPU time and memory of a process and its descendants, from /proc."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process as /proc describes it.

    Attributes:
        pid: Its id.
        parent: The id of the process that started it.
        cpu_seconds: User and system time, including children that have ended.
        daemon: Whether it is PySpark's daemon or a worker that the daemon forked.
    """

    pid: int
    parent: int
    cpu_seconds: float
    daemon: bool


def tree(root: int) -> list[Process]:
    """Returns a process and its living descendants; empty where there is no /proc."""
    processes = list(_processes())
    family = {root}
    while children := {process.pid for process in processes if process.parent in family} - family:
        family |= children
    return [process for process in processes if process.pid in family]


def workers(processes: list[Process]) -> list[int]:
    """Returns the ids of the Spark Python workers among these processes."""
    daemons = {process.pid for process in processes if process.daemon}
    return sorted(
        process.pid for process in processes if process.daemon and process.parent in daemons
    )


def cpu_seconds(processes: list[Process]) -> tuple[float, float]:
    """Returns the CPU seconds of all these processes, and of Spark's Python workers among them.

    When a worker ends, its seconds pass to the daemon, so that differences stay right.
    """
    total = sum(process.cpu_seconds for process in processes)
    return total, sum(process.cpu_seconds for process in processes if process.daemon)


def memory(pid: int) -> dict[str, int]:
    """Returns the current PSS and the highest RSS so far, in bytes; empty if the process ended."""
    try:
        pss = _kilobytes(_PROC / str(pid) / "smaps_rollup", "Pss:")
        peak = _kilobytes(_PROC / str(pid) / "status", "VmHWM:")
    except OSError:
        return {}
    return {"pss": pss, "peak_rss": peak}


def _processes() -> Iterator[Process]:
    ticks = os.sysconf("SC_CLK_TCK")
    for entry in _PROC.glob("[0-9]*"):
        try:
            # The name, in parentheses, may contain spaces and parentheses.
            stat = (entry / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes()
        except OSError:  # it has ended in the meantime
            continue
        yield Process(
            pid=int(entry.name),
            parent=int(stat[1]),
            cpu_seconds=sum(map(int, stat[11:15])) / ticks,
            daemon=b"pyspark.daemon" in command,
        )


def _kilobytes(path: Path, key: str) -> int:
    lines = path.read_text("ascii").splitlines()
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(key)), 0)
