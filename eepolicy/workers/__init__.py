"""Spread work items over workers: processes of this machine, or actors of a Ray cluster."""

from eepolicy.workers.base import Workers
from eepolicy.workers.config import WorkerConfig
from eepolicy.workers.ordered import OrderedWorkers
from eepolicy.workers.processes import ProcessWorkers

__all__ = [
    "OrderedWorkers",
    "ProcessWorkers",
    "WorkerConfig",
    "Workers",
]
