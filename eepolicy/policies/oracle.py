"""The upper bound: exit where the full model's token is known for the first time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from eepolicy.policies.adaptive import Adaptive
from eepolicy.policies.base import Readout, Step, prefixed


@dataclass(frozen=True)
class Oracle(Adaptive):
    """The shallowest depth looked at whose likeliest token is the full model's.

    Not realisable: it asks the full model first, so every layer runs, and the layer calls in its
    trace are those of full depth.  The depths in its trace are what no policy can beat without
    changing a token.

    Attributes:
        exit_depths: the depths, or one depth: from it on, every depth below full.
        on: `"speech"`, `"text"` or `"both"`.

    Examples:
        >>> Oracle(1).spec
        'oracle@1'
    """

    exit_depths: int | tuple[int, ...]
    on: str = "speech"
    name: ClassVar[str] = "oracle"
    needs_full_pass: ClassVar[bool] = True

    def should_exit(self, step: Step, depth: int, readout: Readout) -> Tensor:
        assert readout.full is not None
        return step.is_on(self.on) & (readout.top1 == readout.full.top1)

    @property
    def spec(self) -> str:
        return prefixed(self.on, f"oracle@{self.at}")
