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
        depths_looked_at: the depths, or one depth: from it on, every depth below full.
    """

    depths_looked_at: int | tuple[int, ...]

    def depths(self, step: Step) -> Tensor:
        return masked_depths(step, self.on, step.full_depth)

    def looks(self, step: Step) -> tuple[int, ...]:
        if not bool(step.is_on(self.on).any()):
            return ()
        if isinstance(self.depths_looked_at, int):
            return tuple(range(self.depths_looked_at, step.full_depth))
        return self.depths_looked_at

    def least_depth(self, full_depth: int) -> int:
        looked_at = self.depths_looked_at
        return looked_at if isinstance(looked_at, int) else looked_at[0]

    def check(self, full_depth: int) -> None:
        check_on(self.on)
        looked_at = self.depths_looked_at
        every = (looked_at,) if isinstance(looked_at, int) else looked_at
        if not every or list(every) != sorted(set(every)):
            raise EepolicyError(f"{self!r} must look at one or more rising depths")
        for depth in every:
            check_depth(depth, full_depth, f"{self!r}")

    @property
    def at(self) -> str:
        """The depths as a spec string has them."""
        looked_at = self.depths_looked_at
        return (
            str(looked_at) if isinstance(looked_at, int) else f"[{','.join(map(str, looked_at))}]"
        )
