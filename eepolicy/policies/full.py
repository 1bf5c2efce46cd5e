"""No early exit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from eepolicy.policies.base import POLICIES, ExitPolicy, Step
from eepolicy.registry import parse_rest


@POLICIES.register
@dataclass(frozen=True)
class FullDepth(ExitPolicy):
    """Runs all layers at every position, as the stock model does."""

    name: ClassVar[str] = "full"
    usage: ClassVar[str] = "full"
    example: ClassVar[str] = "full"
    summary: ClassVar[str] = "all layers at every position"
    colour: ClassVar[str] = "#000000"
    marker: ClassVar[str] = "*"

    def depths(self, step: Step) -> Tensor:
        return torch.full_like(step.phase, step.full_depth)

    def min_depth(self, full_depth: int) -> int:
        return full_depth

    def possible_depths(self, full_depth: int) -> tuple[int, ...]:
        return ()

    @classmethod
    def from_spec(cls, rest: str) -> FullDepth:
        parse_rest("", rest)
        return cls()

    @property
    def spec(self) -> str:
        return "full"
