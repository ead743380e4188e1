"""The CPUs that this process may use, and what they can compute."""

import os
from collections.abc import Iterable
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_CPUINFO = Path("/proc/cpuinfo")
_FLAGS = (
    *("avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx_vnni"),
    *("amx_tile", "amx_bf16", "amx_int8"),
    *("asimddp", "bf16", "i8mm", "sve"),  # ARM's
)


def available_cpus() -> int:
    """Returns the number of CPUs that this process may use, within its container's CPU quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        quota, period = _QUOTA.read_text("ascii").split()
        return max(1, min(cpus, int(quota) // int(period)))
    except (OSError, ValueError):  # not in a container, or no quota: "max 100000"
        return cpus


def cpu_name() -> str:
    """Returns the name of this machine's CPU; empty if the system does not tell."""
    return _field("model name")


def instruction_sets() -> list[str]:
    """Returns the instruction sets of this machine's CPU that speed a model up."""
    flags = {*_field("flags").split(), *_field("Features").split()}
    return [flag for flag in _FLAGS if flag in flags]


def has_native_bf16(instruction_sets: Iterable[str]) -> bool:
    """Returns whether a CPU has bf16 instructions; emulated bf16 is slower than fp32."""
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(instruction_sets)


def _field(name: str) -> str:
    """The first value of a field of /proc/cpuinfo; empty on a system without it."""
    try:
        text = _CPUINFO.read_text("utf-8", "replace")
    except OSError:
        return ""
    lines = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), "")
