"""One exit depth for all positions of a modality."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from eepolicy.policies.base import (
    ExitPolicy,
    Step,
    check_depth,
    check_on,
    masked_depths,
    prefixed,
)


@dataclass(frozen=True)
class Static(ExitPolicy):
    """Every position of a modality exits at one depth: the baseline Fixed(l) of SPAR-K, table 2.

    Attributes:
        exit_depth: layers that such a position runs.
        on: `"speech"`, `"text"` or `"both"`.
    """

    exit_depth: int
    on: str = "speech"
    name: ClassVar[str] = "static"

    def depths(self, step: Step) -> Tensor:
        return masked_depths(step, self.on, self.exit_depth)

    def min_depth(self, full_depth: int) -> int:
        return self.exit_depth

    def check(self, full_depth: int) -> None:
        check_on(self.on)
        check_depth(self.exit_depth, full_depth, f"{self!r}")

    @property
    def spec(self) -> str:
        return prefixed(self.on, f"static@{self.exit_depth}")
