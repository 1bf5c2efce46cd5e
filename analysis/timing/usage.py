"""CPU time of a process and all its children, and the share of the cores that was idle."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from types import TracebackType

import psutil

from eepolicy.errors import EepolicyError
from eepolicy.machine import available_cores


@dataclass(frozen=True)
class CpuUsage:
    """Time that processes used, of the time that the cores offered.

    Usages of several runs add up: `first + second`.

    Args:
        wall: wall-clock seconds.
        cpu: CPU seconds of all processes.
        available: CPU seconds that the cores offered, cores times `wall`.

    Raises:
        EepolicyError: a value is negative.

    Example:
        >>> from eepolicy.analysis.timing.usage import CpuUsage
        >>> (CpuUsage(10.0, 15.0, 20.0) + CpuUsage(10.0, 5.0, 20.0)).idle
        0.5
    """

    wall: float = 0.0
    cpu: float = 0.0
    available: float = 0.0

    def __post_init__(self) -> None:
        if min(self.wall, self.cpu, self.available) < 0:
            raise EepolicyError(f"times of a CpuUsage must be at least 0, got {self}")

    @property
    def idle(self) -> float:
        """Share of the available CPU seconds that no process used; nan if none were available."""
        return max(0.0, 1 - self.cpu / self.available) if self.available else float("nan")

    def __add__(self, other: CpuUsage) -> CpuUsage:
        return CpuUsage(
            self.wall + other.wall, self.cpu + other.cpu, self.available + other.available
        )


class UsageMeter:
    """Measures the CPU usage of this process and its children within a `with` block.

    `usage` can be read at any time inside the block, and after it.  A child counts while it lives
    and after it was waited for.  The time of a process is lost if its parent ends before it does.

    Args:
        cores: number of cores that the processes may use; by default those of this process.

    Example:
        >>> from eepolicy.analysis.timing.usage import UsageMeter
        >>> with UsageMeter() as meter:
        ...     total = sum(range(1000))
        >>> meter.usage.wall > 0
        True
    """

    def __init__(self, cores: int | None = None) -> None:
        self.cores = available_cores() if cores is None else cores
        self._start: tuple[float, float] | None = None
        self._stop: tuple[float, float] | None = None

    @property
    def usage(self) -> CpuUsage:
        """Usage from the start of the block to its end, or until now.

        Raises:
            EepolicyError: the block has not been entered.
        """
        if self._start is None:
            raise EepolicyError("the usage is measured in a block: with UsageMeter() as meter: ...")
        stop = self._stop or _now()
        wall, cpu = stop[0] - self._start[0], stop[1] - self._start[1]
        return CpuUsage(wall, max(0.0, cpu), self.cores * wall)

    def __enter__(self) -> UsageMeter:
        self._start, self._stop = _now(), None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop = _now()


def cpu_seconds() -> float:
    """CPU seconds of this process and all its children so far, living or waited for.

    A process keeps the time of its own children once it has waited for them.  The sum over all
    living processes therefore counts each process once.
    """
    own = os.times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.Error:
            continue  # it ended meanwhile
        total += times.user + times.system + times.children_user + times.children_system
    return total


def _now() -> tuple[float, float]:
    return time.perf_counter(), cpu_seconds()
