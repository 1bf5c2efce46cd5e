"""Base of the adaptive policies: the depths at which they may exit."""

from __future__ import annotations

from torch import Tensor

from eepolicy.fields import Positive, RisingDepths
from eepolicy.policies.base import (
    ExitPolicy,
    Step,
    check_depth,
    masked_depths,
)

#: pattern of DEPTHS in spec strings
DEPTHS = r"(\d+|\[\d+(?:,\d+)*\])"
#: pattern of a decimal number in spec strings
NUMBER = r"(-?\d*\.?\d+(?:e[+-]?\d+)?)"


def parse_depths(text: str) -> int | tuple[int, ...]:
    """Read DEPTHS of a spec string.

    Examples:
        >>> parse_depths("14"), parse_depths("[14,16]")
        (14, (14, 16))
    """
    if text.startswith("["):
        return tuple(int(depth) for depth in text[1:-1].split(","))
    return int(text)


def format_depths(depths: int | tuple[int, ...]) -> str:
    """Write DEPTHS of a spec string.

    Examples:
        >>> format_depths(14), format_depths((14, 16))
        ('14', '[14,16]')
    """
    return str(depths) if isinstance(depths, int) else f"[{','.join(map(str, depths))}]"


class Adaptive(ExitPolicy):
    """Base of policies that read some depths out and exit at the first that meets a condition.

    A position that meets the condition at no depth runs at full depth.

    Attributes:
        exit_depths: a tuple of candidate depths, or one depth: all depths from it to full depth.
    """

    exit_depths: Positive | RisingDepths

    def depths(self, step: Step) -> Tensor:
        return masked_depths(step, self.on, step.full_depth)

    def candidate_depths(self, step: Step) -> tuple[int, ...]:
        if not bool(step.is_on(self.on).any()):
            return ()
        if isinstance(self.exit_depths, int):
            return tuple(range(self.exit_depths, step.full_depth))
        return self.exit_depths

    def min_depth(self, full_depth: int) -> int:
        depths = self.exit_depths
        return depths if isinstance(depths, int) else depths[0]

    def possible_depths(self, full_depth: int) -> tuple[int, ...]:
        depths = self.exit_depths
        listed = range(depths, full_depth) if isinstance(depths, int) else depths
        return tuple(depth for depth in listed if depth < full_depth)

    def check(self, full_depth: int) -> None:
        depths = self.exit_depths
        candidates = (depths,) if isinstance(depths, int) else depths
        for depth in candidates:
            check_depth(depth, full_depth, f"{self!r}")
