"""What the process may use of this machine, also in a container with limits of its own.

A container sees all cores and the whole memory of its host.  Its limits are those of its control
group (`cgroup`, version 1 or 2), in files of the system.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

#: files of the control group of this process, as a container sees them
CGROUP = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """Number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # macOS and Windows have none
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota, period = _cpu_limit()
    return min(cores, math.ceil(quota / period)) if quota > 0 < period else cores


def container_memory() -> int | None:
    """Bytes that the container of this process has left; None without a limit.

    Cached files that nobody uses count as free, since the system drops them.
    """
    for folder, limit_file, used_file, cache in (
        (CGROUP, "memory.max", "memory.current", "inactive_file"),
        (
            CGROUP / "memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ):
        limit, used = _numbers(folder / limit_file), _numbers(folder / used_file)
        if limit and used:
            words = _words(folder / "memory.stat")
            cached = int(words[words.index(cache) + 1]) if cache in words else 0
            return max(0, limit[0] - used[0] + cached)
    return None


def within_container(free: int) -> int:
    """Free bytes of the host, or those that the container of this process has left, if fewer."""
    left = container_memory()
    return free if left is None else min(free, left)


def _cpu_limit() -> tuple[int, int]:
    """Microseconds of CPU time in each period, and microseconds of a period; 0 without a limit."""
    both = _numbers(CGROUP / "cpu.max")
    if len(both) == 2:
        return both[0], both[1]
    quota = _numbers(CGROUP / "cpu" / "cpu.cfs_quota_us")
    period = _numbers(CGROUP / "cpu" / "cpu.cfs_period_us")
    return (quota[0], period[0]) if quota and period else (0, 0)


def _numbers(file: Path) -> list[int]:
    """The integers of a file; none if it has other words, such as `max`, or does not exist."""
    words = _words(file)
    return [int(word) for word in words] if all(w.lstrip("-").isdigit() for w in words) else []


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []
