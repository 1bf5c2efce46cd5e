"""No early exit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from eepolicy.policies.base import ExitPolicy, Step


@dataclass(frozen=True)
class FullDepth(ExitPolicy):
    """Every position runs all layers: the model as it is."""

    name: ClassVar[str] = "full"

    def depths(self, step: Step) -> Tensor:
        return torch.full_like(step.phase, step.full_depth)

    def min_depth(self, full_depth: int) -> int:
        return full_depth

    @property
    def spec(self) -> str:
        return "full"
