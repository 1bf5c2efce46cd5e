"""What becomes of the keys and values above an exit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from eepolicy.errors import EepolicyError

FILLS = ("catch_up", "propagate", "mask")


@dataclass(frozen=True)
class Fill:
    """What becomes of the keys and values above an exit.

    Attributes:
        way: `"catch_up"`: the layers above run once a later position goes there, as one block, so
            that the cache is the full model's (SPAR-K; exact).  `"propagate"`: the exit's hidden
            state stands for those above it, and each layer makes its keys and values from it (CALM,
            arXiv 2207.07061).  `"mask"`: nobody attends to what is missing.
        max_pending: of catch-up, positions that may wait; a step that would leave more waiting runs
            on to full depth after its exit.
        along: of catch-up in a batch, None or 0 to 1: a row that has exited comes along with those
            that go on, instead of waiting, while they are at least this share of the rows in the
            layers; with 0 always, which is to synchronise on the deepest.  `"measured"`: unless
            waiting saves a fifth, by layer calls that are timed once a model.  Tokens stay the
            same, but what a row pays depends on its neighbours (and, measured, on the machine).
    """

    way: str = "catch_up"
    max_pending: int | None = None
    along: float | Literal["measured"] | None = None

    def check(self) -> None:
        """Refuse what is no fill.

        Raises:
            EepolicyError: naming what is possible.
        """
        if self.way not in FILLS:
            raise EepolicyError(f"a fill is {', '.join(FILLS)}; got {self.way!r}")
        if self.max_pending is not None and (self.way != "catch_up" or self.max_pending < 1):
            raise EepolicyError(
                f"max_pending is 1 or more, and for catch_up alone; got {self.max_pending} "
                f"with {self.way}"
            )
        known = self.along in (None, "measured")
        known = known or (isinstance(self.along, (int, float)) and 0 <= self.along <= 1)
        if not known or (self.along is not None and self.way != "catch_up"):
            raise EepolicyError(
                "along is a share, 0 to 1, or 'measured', and for catch_up alone; got "
                f"{self.along!r} with {self.way}"
            )
