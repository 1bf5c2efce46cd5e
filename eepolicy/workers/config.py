"""Where work items run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from eepolicy.errors import EepolicyError
from eepolicy.fields import Count, NonNegative, check_fields
from eepolicy.machine import available_cores
from eepolicy.workers.base import Item, Result, Workers
from eepolicy.workers.processes import ProcessWorkers
from eepolicy.workers.ray_actors import RayWorkers, connect


@dataclass(frozen=True)
class WorkerConfig:
    """Where work items run.

    Attributes:
        number: number of workers beside the calling process; with 0 that process does all the
            work.  None for the other cores of this machine, or for all of the Ray cluster.
        ray: address of a Ray cluster, as `ray.init` takes it, or `"local"` for a cluster on this
            machine; None for processes of this machine.
        gpus: GPUs of each worker on a Ray cluster; a fraction shares a GPU.

    Raises:
        EepolicyError: a number is negative, a field has another type, or GPUs are given without
            Ray.

    Examples:
        >>> from eepolicy.workers import WorkerConfig
        >>> with WorkerConfig(0).start(lambda: abs) as workers:
        ...     for item in (-1, -2):
        ...         workers.submit(item)
        ...     sorted(workers.finish())
        [1, 2]
    """

    number: Count | None = 0
    ray: Annotated[str, Field(min_length=1)] | None = None
    gpus: NonNegative = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.ray is None and self.gpus:
            raise EepolicyError("GPUs of a worker are for Ray: give ray as well")
        if self.ray is not None and self.number == 0:
            raise EepolicyError("on a Ray cluster there is at least 1 worker; got 0")

    @classmethod
    def of(cls, workers: WorkerConfig | int) -> WorkerConfig:
        """The config that a number of processes of this machine stands for; a config as it is."""
        return cls(workers) if isinstance(workers, int) else workers

    @property
    def spreads(self) -> bool:
        """Whether other processes work."""
        return self.ray is not None or self.number != 0

    @property
    def processes(self) -> int:
        """Number of worker processes of this machine."""
        return max(1, available_cores() - 1) if self.number is None else self.number

    def connect(self) -> str | None:
        """Connect this process to the Ray cluster, for all workers that start later.

        Without it, each start of workers connects, and disconnects at its end.

        Returns:
            Address of the cluster's dashboard; None if it has none, or without Ray.

        Raises:
            EepolicyError: Ray is not installed, or there is no cluster at the address.
        """
        return None if self.ray is None else connect(self.ray)

    def start(
        self,
        make: Callable[[], Callable[[Item], Result]],
        own: Callable[[Item], Result] | None = None,
    ) -> Workers[Item, Result]:
        """Start workers.

        Args:
            make: makes the function from item to result, once in each process that runs items.
                It is sent to the processes, so it must be possible to pickle it.
            own: the function of the calling process, which helps processes of this machine; made
                by `make` if None.

        Raises:
            EepolicyError: the package of Ray is not installed, or there is no cluster at the
                address.
        """
        if self.ray is not None:
            return RayWorkers(make, self.number, address=self.ray, gpus=self.gpus)
        return ProcessWorkers(make, self.processes, own)
