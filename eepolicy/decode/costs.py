"""What a layer costs, measured, so that a batch can choose the cheaper way."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from eepolicy.cache import ColumnCache

if TYPE_CHECKING:
    from eepolicy.model.compiled import CompiledLayers
    from eepolicy.model.hooked import HookedModel

VECTORS = (1, 2, 4, 8, 16, 32, 64)
LAYERS = 4  # that take turns, so that their weights come from where they lie
ROUNDS = 3


@dataclass(frozen=True)
class LayerCosts:
    """Seconds of one layer call, by the number of positions that go through it at once.

    Attributes:
        vectors: numbers of positions that were measured, rising.
        seconds: of each.
    """

    vectors: tuple[int, ...]
    seconds: tuple[float, ...]

    def of(self, vectors: int) -> float:
        """Seconds for so many positions, between what was measured on a straight line."""
        most = self.vectors[-1]
        if vectors > most:  # by then it is products that take the time
            return self.seconds[-1] * vectors / most
        return float(np.interp(vectors, self.vectors, self.seconds))

    def favour_coming_along(self, stay: int, left: int, wide: int, missing: int) -> bool:
        """Whether rows that have exited had better come along with those that go on.

        It compares the layer calls of now and of the next time that those rows go up, together.

        Args:
            stay: rows that go on.
            left: rows that have exited.
            wide: columns that those that go on take along.
            missing: columns that those that have exited miss.
        """
        now = self.of((stay + left) * max(wide, missing)) + self.of(left)
        later = self.of(stay * wide) + self.of(left * (missing + 1))
        return now <= later


@torch.no_grad()
def measure_layers(model: HookedModel, layers: CompiledLayers | None = None) -> LayerCosts:
    """Time layer calls on random hidden states; the median of a few rounds.

    Args:
        model: whose layers.
        layers: run in place of the model's own.
    """
    like, run = model.model, (layers or model).run_layer
    count = min(LAYERS, model.depth)
    seconds = []
    for vectors in VECTORS:
        hidden = torch.randn(1, vectors, like.config.hidden_size).to(like.device, like.dtype)
        rotations, masks = model.rotations(vectors), model.block_masks(vectors, 0)
        cache = ColumnCache(model.depth, 1, vectors)
        rounds = []
        for _ in range(ROUNDS + 1):
            began = time.perf_counter()
            for index in range(count):
                cache.address(slice(None), 0, vectors)
                out = run(index, hidden, rotations, masks, cache)
            out.sum().item()  # a device has only been told until it is asked
            rounds.append((time.perf_counter() - began) / count)
        seconds.append(float(np.median(rounds[1:])))
    return LayerCosts(VECTORS, tuple(seconds))
