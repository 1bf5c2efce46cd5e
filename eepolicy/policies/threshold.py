"""Adaptive exits: go on until a statistic of the exit head's distribution passes a threshold."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.policies.base import (
    ExitPolicy,
    Readout,
    Step,
    check_depth,
    check_on,
    masked_depths,
    prefixed,
)


@dataclass(frozen=True)
class Threshold(ExitPolicy):
    """Looks at some depths, exits at the first one that is sure enough.

    Attributes:
        threshold: of the statistic.
        depths_looked_at: the depths, or one depth: from it on, every depth below full.
        on: `"speech"`, `"text"` or `"both"`.
    """

    threshold: float
    depths_looked_at: int | tuple[int, ...]
    on: str = "speech"
    sign: ClassVar[str]

    def depths(self, step: Step) -> Tensor:
        return masked_depths(step, self.on, step.full_depth)

    def looks(self, step: Step) -> tuple[int, ...]:
        if not bool(step.is_on(self.on).any()):
            return ()
        if isinstance(self.depths_looked_at, int):
            return tuple(range(self.depths_looked_at, step.full_depth))
        return self.depths_looked_at

    def exits(self, step: Step, depth: int, readout: Readout) -> Tensor:
        return step.is_on(self.on) & self.sure(readout)

    @abstractmethod
    def sure(self, readout: Readout) -> Tensor:
        """Which rows are sure enough: (rows,) of bool."""

    def check(self, full_depth: int) -> None:
        check_on(self.on)
        looked_at = self.depths_looked_at
        every = (looked_at,) if isinstance(looked_at, int) else looked_at
        if not every or list(every) != sorted(set(every)):
            raise EepolicyError(f"{self!r} must look at one or more rising depths")
        for depth in every:
            check_depth(depth, full_depth, f"{self!r}")

    @property
    def spec(self) -> str:
        looked_at = self.depths_looked_at
        at = looked_at if isinstance(looked_at, int) else f"[{','.join(map(str, looked_at))}]"
        return prefixed(self.on, f"{self.name}{self.sign}{float(self.threshold)!r}@{at}")


@dataclass(frozen=True)
class Entropy(Threshold):
    """Exits where the entropy (nats) falls below the threshold: Conf(l) of SPAR-K, table 2.

    Example:
        >>> Entropy(0.5, 26).spec
        'entropy<0.5@26'
    """

    name: ClassVar[str] = "entropy"
    sign: ClassVar[str] = "<"

    def sure(self, readout: Readout) -> Tensor:
        return readout.entropy < self.threshold


@dataclass(frozen=True)
class Confidence(Threshold):
    """Exits where the likeliest token's probability passes the threshold (CALM, arXiv 2207.07061).

    Example:
        >>> Confidence(0.9, (14, 16, 18)).spec
        'confidence>0.9@[14,16,18]'
    """

    name: ClassVar[str] = "confidence"
    sign: ClassVar[str] = ">"

    def sure(self, readout: Readout) -> Tensor:
        return readout.confidence > self.threshold
