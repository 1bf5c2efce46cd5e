"""SPAR-K's schedules (arXiv 2603.09215, section on the schedule)."""

from __future__ import annotations

import re
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

#: the paper's patterns: F runs at full depth, E exits
PATTERNS = {"even": "FE", "odd": "EF", "triple": "FEE"}


@dataclass(frozen=True)
class SparK(ExitPolicy):
    """Early exit by a schedule with periodic full-depth refreshes.

    Attributes:
        pattern: `"even"` (full, exit, ...), `"odd"` (exit, full, ...), `"triple"` (full, exit,
            exit, ...) as in the paper, or a group of your own such as `"FEEE"`: F for full, E for
            exit.
        exit_depth: layers of the positions that exit.
        on: `"speech"` as in the paper, `"text"` (its ablation G9) or `"both"`.
        restart: the pattern starts anew in each chunk, as in the paper; otherwise it runs on from
            one chunk of a modality to the next.

    Examples:
        >>> SparK("triple", exit_depth=16).spec
        'spark:triple@16'
        >>> SparK("FEEE", exit_depth=16, restart=False).spec
        'spark:FEEE~@16'
    """

    pattern: str
    exit_depth: int
    on: str = "speech"
    restart: bool = True
    name: ClassVar[str] = "spark"

    def depths(self, step: Step) -> Tensor:
        group = PATTERNS.get(self.pattern, self.pattern)
        place = (step.phase if self.restart else step.ordinal) % len(group)
        depths = [step.full_depth if letter == "F" else self.exit_depth for letter in group]
        return masked_depths(step, self.on, torch.tensor(depths, device=place.device)[place])

    def min_depth(self, full_depth: int) -> int:
        return self.exit_depth

    def check(self, full_depth: int) -> None:
        check_on(self.on)
        if self.pattern not in PATTERNS and not re.fullmatch("[FE]+", self.pattern):
            raise EepolicyError(
                f"SparK's patterns are {', '.join(PATTERNS)}, or a group of F (full) and E (exit) "
                f"such as FEEE; got {self.pattern!r}"
            )
        check_depth(self.exit_depth, full_depth, f"{self!r}")

    @property
    def spec(self) -> str:
        on = "" if self.restart else "~"
        return prefixed(self.on, f"spark:{self.pattern}{on}@{self.exit_depth}")
