"""SPAR-K's schedules (arXiv 2603.09215, section on the schedule)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.policies.base import (
    ExitPolicy,
    Step,
    check_depth,
    check_on,
    masked_depths,
    prefixed,
)

#: name: which places of a group are refreshed at full depth
PATTERNS = {"even": (True, False), "odd": (False, True), "triple": (True, False, False)}


@dataclass(frozen=True)
class SparK(ExitPolicy):
    """Early exit by a schedule with periodic full-depth refreshes; the phase restarts each chunk.

    Attributes:
        pattern: `"even"` (full, exit, ...), `"odd"` (exit, full, ...) or `"triple"` (full, exit,
            exit, ...).
        exit_depth: layers of the positions that exit.
        on: `"speech"` as in the paper, `"text"` (its ablation G9) or `"both"`.

    Example:
        >>> SparK("triple", exit_depth=16).spec
        'spark:triple@16'
    """

    pattern: str
    exit_depth: int
    on: str = "speech"
    name: ClassVar[str] = "spark"

    def depths(self, step: Step) -> Tensor:
        refreshed = torch.tensor(PATTERNS[self.pattern])[step.phase % len(PATTERNS[self.pattern])]
        depth = torch.where(refreshed, step.full_depth, self.exit_depth)
        return masked_depths(step, self.on, depth)

    def check(self, full_depth: int) -> None:
        check_on(self.on)
        if self.pattern not in PATTERNS:
            raise EepolicyError(f"SparK's patterns are {', '.join(PATTERNS)}; got {self.pattern!r}")
        check_depth(self.exit_depth, full_depth, f"{self!r}")

    @property
    def spec(self) -> str:
        return prefixed(self.on, f"spark:{self.pattern}@{self.exit_depth}")
