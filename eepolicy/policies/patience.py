"""Exit when several depths in a row name the same token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.policies.adaptive import Adaptive
from eepolicy.policies.base import Readout, Step, prefixed


@dataclass(frozen=True)
class Patience(Adaptive):
    """Exits at a depth that is the last of `count` looks in a row with the same likeliest token.

    Patience-based early exit (arXiv 2006.04152), there for classifiers and with one look a layer.

    Attributes:
        count: looks that must agree, 2 or more.
        exit_depths: the depths, or one depth: from it on, every depth below full.
        on: `"speech"`, `"text"` or `"both"`.

    Examples:
        >>> Patience(3, (8, 10, 12, 14)).spec
        'patience:3@[8,10,12,14]'
    """

    count: int
    exit_depths: int | tuple[int, ...]
    on: str = "speech"
    name: ClassVar[str] = "patience"

    def should_exit(self, step: Step, depth: int, readout: Readout) -> Tensor:
        agreeing, earlier = step.is_on(self.on), readout.previous
        for _ in range(self.count - 1):
            if earlier is None:
                return torch.zeros_like(agreeing)
            agreeing = agreeing & (earlier.top1 == readout.top1)
            earlier = earlier.previous
        return agreeing

    def check(self, full_depth: int) -> None:
        super().check(full_depth)
        if self.count < 2:
            raise EepolicyError(f"{self!r} must wait for 2 or more looks that agree")

    @property
    def spec(self) -> str:
        return prefixed(self.on, f"patience:{self.count}@{self.at}")
