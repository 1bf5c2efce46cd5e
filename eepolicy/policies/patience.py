"""Exit when consecutive candidate depths give the same token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from eepolicy.fields import CheckedFields, Positive, RisingDepths
from eepolicy.policies.adaptive import DEPTHS, Adaptive, format_depths, parse_depths
from eepolicy.policies.base import POLICIES, On, Readout, Step, prefixed
from eepolicy.registry import parse_rest


@POLICIES.register
@dataclass(frozen=True)
class Patience(CheckedFields, Adaptive):
    """Exits when `count` consecutive candidate depths have the same argmax token.

    Patience-based early exit (arXiv 2006.04152).  The paper exits classifiers and reads out every
    layer.

    Attributes:
        count: number of candidate depths that must agree, 2 or more.
        exit_depths: a tuple of candidate depths, or one depth: all depths from it to full depth.
        on: `"speech"`, `"text"` or `"both"`.

    Examples:
        >>> Patience(3, (8, 10, 12, 14)).spec
        'patience:3@[8,10,12,14]'
    """

    count: Annotated[int, Field(ge=2, lt=2**31)]
    exit_depths: Positive | RisingDepths
    on: On = "speech"
    name: ClassVar[str] = "patience"
    usage: ClassVar[str] = "patience:COUNT@DEPTHS"
    example: ClassVar[str] = "patience:3@[8,10,12,14]"
    summary: ClassVar[str] = "three consecutive depths of the list have the same argmax token"
    paper: ClassVar[str] = "PABEE, arXiv 2006.04152"
    source: ClassVar[str] = "https://arxiv.org/abs/2006.04152"
    colour: ClassVar[str] = "#CC79A7"
    marker: ClassVar[str] = ">"

    def should_exit(self, step: Step, depth: int, readout: Readout) -> Tensor:
        agrees, earlier = step.is_on(self.on), readout.previous
        for _ in range(self.count - 1):
            if earlier is None:
                return torch.zeros_like(agrees)
            agrees = agrees & (earlier.top1 == readout.top1)
            earlier = earlier.previous
        return agrees

    @classmethod
    def from_spec(cls, rest: str) -> Patience:
        count, depths = parse_rest(rf":(\d+)@{DEPTHS}", rest)
        return cls(int(count), parse_depths(depths))

    @property
    def spec(self) -> str:
        return prefixed(self.on, f"patience:{self.count}@{format_depths(self.exit_depths)}")
