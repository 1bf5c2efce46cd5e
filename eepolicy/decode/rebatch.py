"""What a layer costs, measured, so that a batch can choose the cheaper way."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from eepolicy.compile.executor import CompiledExecutor
    from eepolicy.hooked import HookedModel

#: positions that are timed; compiled, five cost what eight do, and nine much more
VECTORS = (1, 2, 3, 4, 5, 8, 9, 16, 32, 64)
COLUMNS = 64  # that are remembered
#: share of the layer calls' cost that rows may be parted for: parting, waiting and joining cost
#: time of their own, which is not measured
WORTH = 0.8
LAYERS = 4  # that take turns, so that their weights come from where they lie
ROUNDS = 3


@dataclass(frozen=True)
class LayerCosts:
    """Seconds of one layer call, by the number of positions that go through it at once.

    Attributes:
        vectors: numbers of positions that were measured, rising.
        seconds: of each.
        gathering: seconds more for two rows, `COLUMNS` long, that do not follow each other, whose
            keys and values have to be brought together.
    """

    vectors: tuple[int, ...]
    seconds: tuple[float, ...]
    gathering: float = 0.0

    def of(self, vectors: int) -> float:
        """Seconds for so many positions, between what was measured on a straight line."""
        most = self.vectors[-1]
        if vectors > most:  # by then it is products that take the time
            return self.seconds[-1] * vectors / most
        return float(np.interp(vectors, self.vectors, self.seconds))

    def favour_coming_along(
        self, stay: int, left: int, wide: int, missing: int, gathered: int = 0
    ) -> bool:
        """Whether rows that have exited had better come along with those that go on.

        It compares the layer calls of now and of the next time that all of them go up, in one
        block, which is as wide for all as for those that miss most.  Rows part where that costs
        less than `WORTH` of it.

        Args:
            stay: rows that go on.
            left: rows that have exited.
            wide: columns that those that go on take along.
            missing: columns that those that have exited miss.
            gathered: how many more of the two, than of both together, do not follow each other in
                the batch.
        """
        rows = stay + left
        now = self.of(rows * max(wide, missing)) + self.of(rows)
        later = self.of(stay * wide) + self.of(rows * (missing + 1))
        return WORTH * now <= later + gathered * self.gathering


@torch.no_grad()
def measure_layers(model: HookedModel, layers: CompiledExecutor | None = None) -> LayerCosts:
    """Time layer calls, `COLUMNS` into a batch of rows; the median of a few rounds.

    Args:
        model: whose layers.
        layers: run in place of the model's own.
    """
    from eepolicy.decode.batch import Batch, Block

    like, count = model.model, min(LAYERS, model.depth)

    def run(batch: Batch, rows: list[int], columns: int) -> float:
        """Seconds of a layer call on new columns of some rows."""
        hidden = torch.randn(len(rows), columns, like.config.hidden_size)
        batch.columns += columns
        block = Block(rows, hidden.to(like.device, like.dtype), [columns] * len(rows))
        began = time.perf_counter()
        batch.run(block, count)
        block.hidden.sum().item()  # a device has only been told until it is asked
        return (time.perf_counter() - began) / count

    def seconds(rows: list[int], columns: int = 1) -> float:
        """The same, behind those that are remembered."""
        held = list(range(rows[-1] + 1))
        room = COLUMNS + (ROUNDS + 1) * columns
        batch = Batch(model, [0] * len(held), room, layers=layers)
        run(batch, held, COLUMNS)
        return float(np.median([run(batch, rows, columns) for _ in range(ROUNDS + 1)][1:]))

    of_one_row = tuple(seconds([0], columns) for columns in VECTORS)
    return LayerCosts(VECTORS, of_one_row, max(0.0, seconds([0, 2]) - seconds([0, 1])))
