"""The limits on the memory of this process: Spark's, the container's and the machine's."""

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# What a limit counts: all that a process maps, files and reserved space included, or the memory
# that is in RAM.
Kind = Literal["address_space", "resident"]

# Files below a cgroup that hold its limit, the limit on swap (v2: swap alone; v1: both together)
# and the statistics, with the key of the memory that is not a file's.
_V2 = ("memory.max", "memory.swap.max", "anon")
_V1 = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "total_rss")


@dataclass(frozen=True, kw_only=True)
class MemoryCeiling:
    """A limit on the memory of this process.

    Attributes:
        kind: What it counts.
        bytes: The limit, with the swap space that may be used beyond it.
        others: Bytes of it that other processes use now: the JVM, other workers.
        source: Where it comes from, for messages.
    """

    kind: Kind
    bytes: int
    others: int = 0
    source: str


def memory_ceilings(root: Path = Path("/")) -> list[MemoryCeiling]:
    """Returns the limits on this process's memory, each of which applies on its own.

    They are its address space (Spark sets it from ``spark.executor.pyspark.memory``), its cgroups
    (a container's limit) and the machine's memory. A system without ``/proc`` has only the first.

    Args:
        root: The directory that holds ``proc`` and ``sys``.
    """
    return [*_address_space(), *_resident(root)]


def _address_space() -> Iterator[MemoryCeiling]:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        is_sparks = "PYSPARK_EXECUTOR_MEMORY_MB" in os.environ
        source = "spark.executor.pyspark.memory" if is_sparks else "ulimit -v"
        yield MemoryCeiling(kind="address_space", bytes=limit, source=source)


def _resident(root: Path) -> Iterator[MemoryCeiling]:
    machine = _fields(root / "proc/meminfo", unit=1024)
    if "MemTotal" not in machine:
        return
    swap = machine.get("SwapTotal", 0)
    status = _fields(root / "proc/self/status", unit=1024)
    own = status.get("RssAnon", status.get("VmRSS", 0))
    yield MemoryCeiling(
        kind="resident",
        bytes=machine["MemTotal"] + swap,
        others=max(0, machine["MemTotal"] - machine.get("MemAvailable", 0) - own),
        source="the machine's memory",
    )
    for directory, (limit, swap_limit, used) in _cgroups(root):
        size = _number(directory / limit)
        if size is None or size >= machine["MemTotal"]:  # "max", or v1's largest number
            continue
        allowed_swap = _number(directory / swap_limit)
        if allowed_swap is not None and limit == _V1[0]:
            allowed_swap -= size
        others = _fields(directory / "memory.stat").get(used, 0) - own
        yield MemoryCeiling(
            kind="resident",
            bytes=size + (swap if allowed_swap is None else min(swap, allowed_swap)),
            others=max(0, others),
            source=f"the container's limit ({directory / limit})",
        )


def _cgroups(root: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """The directories of this process's cgroups and of those around them, inside out.

    In a container the path may be the host's and exist nowhere; the top directory is then the
    container's own cgroup.
    """
    lines: list[str] = []
    with suppress(OSError):
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        directory = top / path.lstrip("/")
        for parent in (directory, *directory.parents):
            if parent.is_relative_to(top):
                yield parent, _V1 if controllers else _V2


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _fields(path: Path, *, unit: int = 1) -> dict[str, int]:
    """The numbers of a file of names and numbers; none if it cannot be read."""
    try:
        lines = [line.replace(":", " ").split() for line in path.read_text("utf-8").splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) * unit for line in lines if len(line) > 1 and line[1].isdigit()}
