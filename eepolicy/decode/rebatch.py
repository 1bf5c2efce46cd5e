"""Rebatching: whether rows that have exited run on with those that continue.

A row that exits can leave the block, or run on with it.  Leaving saves computation now and makes a
later block wider; see dynamic rebatching, arXiv 2512.15705.  Tokens are the same either way.  If
rows run on, the costs of a row depend on its neighbours and, for `auto`, on the machine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from eepolicy.arguments import checked
from eepolicy.decode.block import Block
from eepolicy.decode.positions import Positions
from eepolicy.errors import EepolicyError
from eepolicy.fields import Finite, NonNegative, Positive, Tuple, build, check_fields

#: Rows leave only if leaving costs less than this share of running on.  The share is below 1
#: because the time for gathering, deferring and joining rows is not measured.
MIN_SAVING = 0.8


class RebatchRule(ABC):
    """Decides whether exited rows run on."""

    @abstractmethod
    def runs_on(
        self, block: Block, staying: list[int], exited: list[int], positions: Positions
    ) -> bool:
        """Whether exited rows run on with the rows that continue.

        Args:
            block: both groups of rows.
            staying: indices in the block of the rows that continue.
            exited: indices in the block of the rows that have exited.
            positions: cache slots of the batch.
        """


@dataclass(frozen=True)
class NeverRebatch(RebatchRule):
    """Exited rows leave, so the cost of a row does not depend on its neighbours."""

    def runs_on(
        self, block: Block, staying: list[int], exited: list[int], positions: Positions
    ) -> bool:
        return False


@dataclass(frozen=True)
class ShareRebatch(RebatchRule):
    """Exited rows run on while at least a share of the rows continues.

    Attributes:
        share: smallest share of continuing rows, from 0 (always run on) to 1.
    """

    share: float

    def runs_on(
        self, block: Block, staying: list[int], exited: list[int], positions: Positions
    ) -> bool:
        return len(staying) >= self.share * len(block.rows)


@dataclass(frozen=True)
class AutoRebatch(RebatchRule):
    """Exited rows run on unless leaving saves a fifth of the layer calls' measured cost.

    Attributes:
        costs: measured costs of a layer call.
    """

    costs: LayerCosts

    def runs_on(
        self, block: Block, staying: list[int], exited: list[int], positions: Positions
    ) -> bool:
        widths = [max(block.num_new[i] for i in group) for group in (staying, exited)]
        groups = [[block.rows[i] for i in group] for group in (staying, exited)]
        gathers = sum(map(positions.needs_gather, groups)) - positions.needs_gather(block.rows)
        return self.costs.favours_running_on(
            (len(staying), len(exited)), (widths[0], widths[1]), gathers
        )


@dataclass(frozen=True)
class LayerCosts:
    """Seconds of one layer call by the number of positions in it.

    Attributes:
        num_positions: measured numbers of positions, ascending.
        seconds: seconds of a layer call, one for each.
        gather_seconds: additional seconds for two rows that are not adjacent in the cache.
        readout_seconds: seconds of an evaluation of the output embedding on one position.
    """

    num_positions: Annotated[tuple[Positive, ...], Tuple]
    seconds: Annotated[tuple[NonNegative, ...], Tuple]
    gather_seconds: Finite = 0.0
    readout_seconds: NonNegative = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.seconds or len(self.seconds) != len(self.num_positions):
            raise EepolicyError(
                "LayerCosts: expected seconds for each number of positions; got "
                f"{self.seconds!r} for {self.num_positions!r}"
            )

    @classmethod
    @checked()
    def from_dict(cls, plain: Mapping[str, Any]) -> LayerCosts:
        """Read what `dataclasses.asdict` makes of it and JSON keeps; lists become tuples."""
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()
        }
        return build(cls, values)

    def of(self, num_positions: int) -> float:
        """Seconds for a number of positions, linearly interpolated."""
        largest = self.num_positions[-1]
        if num_positions > largest:  # matrix products dominate, so cost grows in proportion
            return self.seconds[-1] * num_positions / largest
        return float(np.interp(num_positions, self.num_positions, self.seconds))

    def favours_running_on(
        self, rows: tuple[int, int], widths: tuple[int, int], extra_gathers: int = 0
    ) -> bool:
        """Whether running on costs less than leaving.

        It compares the cost of one layer in this step and in the next step.  It assumes that the
        next step runs all rows to full depth in one block.  The width of a block is the number of
        columns of the row that has the most.

        Args:
            rows: number of rows that continue, and that have exited.
            widths: number of columns that each of the two groups computes.
            extra_gathers: how many more groups are not adjacent after the split than before.
        """
        staying, exited = rows
        both = staying + exited
        running_on = self.of(both * max(widths)) + self.of(both)
        leaving = self.of(staying * widths[0]) + self.of(both * (widths[1] + 1))
        return MIN_SAVING * running_on <= leaving + extra_gathers * self.gather_seconds


def check_rebatch(rebatch: str | float) -> None:
    """Check the value of the option `rebatch`.

    Raises:
        EepolicyError: the value is not `"never"`, `"always"`, `"auto"` or a share.
    """
    is_share = isinstance(rebatch, (int, float)) and not isinstance(rebatch, bool)
    if rebatch in ("never", "always", "auto") or (is_share and 0 <= float(rebatch) <= 1):
        return
    raise EepolicyError(
        f"rebatch is 'never', 'always', 'auto' or a share from 0 to 1; got {rebatch!r}"
    )
