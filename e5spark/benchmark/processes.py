"""What a process and all that it started have used, from /proc."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True, kw_only=True)
class Process:
    """One entry of /proc.

    Attributes:
        pid: Of the process.
        parent: Of the process that started it.
        cpu_seconds: User and system, of its children that have ended too.
        daemon: Whether it is PySpark's daemon or one of the workers that it has forked.
    """

    pid: int
    parent: int
    cpu_seconds: float
    daemon: bool


def tree(root: int) -> list[Process]:
    """Returns a process and its living descendants; empty where there is no /proc."""
    everything = list(_processes())
    found = {root}
    grown = True
    while grown:
        more = {each.pid for each in everything if each.parent in found} - found
        found |= more
        grown = bool(more)
    return [each for each in everything if each.pid in found]


def workers(processes: list[Process]) -> list[int]:
    """Returns the ids of the Spark Python workers among these processes."""
    daemons = {each.pid for each in processes if each.daemon}
    return sorted(each.pid for each in processes if each.daemon and each.parent in daemons)


def cpu_seconds(processes: list[Process]) -> tuple[float, float]:
    """Returns the CPU seconds of all of these, and of Spark's Python workers among them.

    A worker that ends passes its share on to the daemon, so differences stay right.
    """
    everything = sum(each.cpu_seconds for each in processes)
    return everything, sum(each.cpu_seconds for each in processes if each.daemon)


def memory(pid: int) -> dict[str, int]:
    """Returns PSS now and the highest RSS so far, in bytes; empty if the process is gone."""
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
            # The name in parentheses may hold spaces and parentheses itself.
            stat = (entry / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes()
        except OSError:  # it has ended meanwhile
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
