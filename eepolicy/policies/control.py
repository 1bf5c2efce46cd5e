"""A control: random exits."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.fields import CheckedFields, Finite, Positive, Seed
from eepolicy.policies.adaptive import NUMBER
from eepolicy.policies.base import (
    POLICIES,
    ExitPolicy,
    On,
    Step,
    check_depth,
    masked_depths,
    prefixed,
)
from eepolicy.registry import parse_rest


@POLICIES.register
@dataclass(frozen=True)
class Random(CheckedFields, ExitPolicy):
    """Exits at random positions, with a given mean depth.

    A schedule or an adaptive policy of the same mean depth must beat this control.  The draw of a
    position depends on the seed and the position in the reply alone, so a rerun repeats it.

    Attributes:
        mean_depth: expected depth of a position.
        exit_depth: depth of the positions that exit.
        on: `"speech"`, `"text"` or `"both"`.
        seed: seed of the draws.

    Examples:
        >>> Random(16.0, exit_depth=12).spec
        'random:16.0@12'
    """

    mean_depth: Finite
    exit_depth: Positive
    on: On = "speech"
    seed: Seed = 0
    name: ClassVar[str] = "random"
    usage: ClassVar[str] = "random:MEAN@DEPTH[#SEED]"
    example: ClassVar[str] = "random:16.0@12"
    summary: ClassVar[str] = (
        "exits at depth 12 at random so that the expected depth is 16; append #7 for seed 7"
    )
    paper: ClassVar[str] = "a control"
    colour: ClassVar[str] = "#777777"
    marker: ClassVar[str] = "x"

    def depths(self, step: Step) -> Tensor:
        share = (step.full_depth - self.mean_depth) / max(step.full_depth - self.exit_depth, 1)
        uniforms = [random.Random(f"{self.seed} {p}").random() for p in step.position.tolist()]
        exits = torch.tensor(uniforms, device=step.phase.device) < share
        return masked_depths(step, self.on, torch.where(exits, self.exit_depth, step.full_depth))

    def min_depth(self, full_depth: int) -> int:
        return self.exit_depth

    def possible_depths(self, full_depth: int) -> tuple[int, ...]:
        return (self.exit_depth,)

    def check(self, full_depth: int) -> None:
        check_depth(self.exit_depth, full_depth, f"{self!r}")
        if not self.exit_depth <= self.mean_depth <= full_depth:
            raise EepolicyError(
                f"{self!r} needs a mean depth from {self.exit_depth}, its exit depth, to "
                f"{full_depth}"
            )

    @classmethod
    def from_spec(cls, rest: str) -> Random:
        mean, depth, seed = parse_rest(rf":{NUMBER}@(\d+)(?:#(-?\d+))?", rest)
        return cls(float(mean), int(depth), seed=int(seed or 0))

    @property
    def spec(self) -> str:
        seed = f"#{self.seed}" if self.seed else ""
        return prefixed(self.on, f"random:{float(self.mean_depth)!r}@{self.exit_depth}{seed}")
