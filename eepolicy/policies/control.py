"""A control: exits without a reason."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.policies.base import ExitPolicy, Step, check_depth, check_on, masked_depths, prefixed


@dataclass(frozen=True)
class Random(ExitPolicy):
    """Exits at one depth or runs at full depth, by lot, with a given mean depth.

    What a schedule or an adaptive policy of that mean depth must beat.  The lot of a position
    depends on the seed and its place in the reply alone, so that a rerun draws the same.

    Attributes:
        mean_depth: expected depth of a position.
        exit_depth: of those that exit.
        on: `"speech"`, `"text"` or `"both"`.
        seed: of the lots.

    Examples:
        >>> Random(16.0, exit_depth=12).spec
        'random:16.0@12'
    """

    mean_depth: float
    exit_depth: int
    on: str = "speech"
    seed: int = 0
    name: ClassVar[str] = "random"

    def depths(self, step: Step) -> Tensor:
        share = (step.full_depth - self.mean_depth) / max(step.full_depth - self.exit_depth, 1)
        lots = [random.Random(f"{self.seed} {p}").random() for p in step.position.tolist()]
        exiting = torch.tensor(lots, device=step.phase.device) < share
        return masked_depths(step, self.on, torch.where(exiting, self.exit_depth, step.full_depth))

    def min_depth(self, full_depth: int) -> int:
        return self.exit_depth

    def check(self, full_depth: int) -> None:
        check_on(self.on)
        check_depth(self.exit_depth, full_depth, f"{self!r}")
        if not self.exit_depth <= self.mean_depth <= full_depth:
            raise EepolicyError(
                f"{self!r} must have a mean depth from {self.exit_depth}, where it exits, to "
                f"{full_depth}"
            )

    @property
    def spec(self) -> str:
        seed = f"#{self.seed}" if self.seed else ""
        return prefixed(self.on, f"random:{float(self.mean_depth)!r}@{self.exit_depth}{seed}")
