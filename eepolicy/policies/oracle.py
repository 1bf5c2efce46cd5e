"""An upper bound: the smallest depth that already gives the full model's token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from eepolicy.fields import CheckedFields, Positive, RisingDepths
from eepolicy.policies.adaptive import DEPTHS, Adaptive, format_depths, parse_depths
from eepolicy.policies.base import POLICIES, On, Readout, Step, prefixed
from eepolicy.registry import parse_rest


@POLICIES.register
@dataclass(frozen=True)
class Oracle(CheckedFields, Adaptive):
    """Selects the smallest candidate depth whose argmax token is the full model's.

    It runs the full model first, so every layer runs and its trace has the layer calls of full
    depth.  The depths in its trace are a lower bound: a policy that exits earlier changes a token.

    Attributes:
        exit_depths: a tuple of candidate depths, or one depth: all depths from it to full depth.
        on: `"speech"`, `"text"` or `"both"`.

    Examples:
        >>> Oracle(1).spec
        'oracle@1'
    """

    exit_depths: Positive | RisingDepths
    on: On = "speech"
    name: ClassVar[str] = "oracle"
    usage: ClassVar[str] = "oracle@DEPTHS"
    example: ClassVar[str] = "oracle@1"
    summary: ClassVar[str] = "the smallest depth whose argmax token is the full model's"
    paper: ClassVar[str] = "an upper bound; runs all layers"
    colour: ClassVar[str] = "#000000"
    marker: ClassVar[str] = "o"
    needs_full_pass: ClassVar[bool] = True

    def should_exit(self, step: Step, depth: int, readout: Readout) -> Tensor:
        assert readout.full is not None
        return step.is_on(self.on) & (readout.top1 == readout.full.top1)

    @classmethod
    def from_spec(cls, rest: str) -> Oracle:
        (depths,) = parse_rest(f"@{DEPTHS}", rest)
        return cls(parse_depths(depths))

    @property
    def spec(self) -> str:
        return prefixed(self.on, f"oracle@{format_depths(self.exit_depths)}")
