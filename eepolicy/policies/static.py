"""One exit depth for all positions of a modality."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from eepolicy.fields import CheckedFields, Positive
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
class Static(CheckedFields, ExitPolicy):
    """Exits at one depth at every position of a modality: the baseline Fixed(l) of SPAR-K, table 2.

    Attributes:
        exit_depth: depth of the positions.
        on: `"speech"`, `"text"` or `"both"`.

    Examples:
        >>> Static(16).spec
        'static@16'
    """

    exit_depth: Positive
    on: On = "speech"
    name: ClassVar[str] = "static"
    usage: ClassVar[str] = "static@DEPTH"
    example: ClassVar[str] = "static@16"
    summary: ClassVar[str] = "an exit at depth 16 at every speech token"
    paper: ClassVar[str] = "Fixed of SPAR-K, arXiv 2603.09215"
    source: ClassVar[str] = "https://arxiv.org/abs/2603.09215"
    colour: ClassVar[str] = "#56B4E9"
    marker: ClassVar[str] = "s"

    def depths(self, step: Step) -> Tensor:
        return masked_depths(step, self.on, self.exit_depth)

    def min_depth(self, full_depth: int) -> int:
        return self.exit_depth

    def possible_depths(self, full_depth: int) -> tuple[int, ...]:
        return (self.exit_depth,)

    def check(self, full_depth: int) -> None:
        check_depth(self.exit_depth, full_depth, f"{self!r}")

    @classmethod
    def from_spec(cls, rest: str) -> Static:
        (depth,) = parse_rest(r"@(\d+)", rest)
        return cls(int(depth))

    @property
    def spec(self) -> str:
        return prefixed(self.on, f"static@{self.exit_depth}")
