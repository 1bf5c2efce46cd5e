"""What all adaptive policies share: the depths at which they look."""

from __future__ import annotations

from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.policies.base import (
    ExitPolicy,
    Step,
    check_depth,
    check_on,
    masked_depths,
)


class Adaptive(ExitPolicy):
    """Looks at some depths and may exit at each of them; runs at full depth otherwise.

    Attributes:
        exit_depths: the depths, or one depth: from it on, every depth below full.
    """

    exit_depths: int | tuple[int, ...]

    def depths(self, step: Step) -> Tensor:
        return masked_depths(step, self.on, step.full_depth)

    def candidate_depths(self, step: Step) -> tuple[int, ...]:
        if not bool(step.is_on(self.on).any()):
            return ()
        if isinstance(self.exit_depths, int):
            return tuple(range(self.exit_depths, step.full_depth))
        return self.exit_depths

    def min_depth(self, full_depth: int) -> int:
        looked_at = self.exit_depths
        return looked_at if isinstance(looked_at, int) else looked_at[0]

    def check(self, full_depth: int) -> None:
        check_on(self.on)
        looked_at = self.exit_depths
        every = (looked_at,) if isinstance(looked_at, int) else looked_at
        if not every or list(every) != sorted(set(every)):
            raise EepolicyError(f"{self!r} must look at one or more rising depths")
        for depth in every:
            check_depth(depth, full_depth, f"{self!r}")

    @property
    def at(self) -> str:
        """The depths as a spec string has them."""
        looked_at = self.exit_depths
        return (
            str(looked_at) if isinstance(looked_at, int) else f"[{','.join(map(str, looked_at))}]"
        )
