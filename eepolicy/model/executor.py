"""What runs a model's layers and reads them out: as they are, compiled, or captured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from eepolicy.model.families import Rotation
from eepolicy.model.kv_cache import KVCache


class LayerExecutor(ABC):
    """The layers of a model, from 0."""

    @property
    @abstractmethod
    def depth(self) -> int:
        """Number of decoder layers: full depth."""

    @abstractmethod
    def run_layer(
        self,
        index: int,
        hidden: Tensor,
        rotations: dict[str, Rotation],
        masks: dict[str, Tensor | None],
        cache: KVCache,
    ) -> Tensor:
        """Run one layer; see `Backbone.run_layer`."""

    @abstractmethod
    def fill_layer(
        self, index: int, hidden: Tensor, rotations: dict[str, Rotation], cache: KVCache
    ) -> None:
        """Store the keys and values of one layer; see `Backbone.fill_layer`."""

    @abstractmethod
    def logits(self, hidden: Tensor, depth: int, over: Sequence[tuple[int, int]] = ()) -> Tensor:
        """Read out hidden states at a depth; see `Backbone.logits`."""

    def run_layers(
        self,
        first: int,
        stop: int,
        hidden: Tensor,
        rotations: dict[str, Rotation],
        masks: dict[str, Tensor | None],
        cache: KVCache,
    ) -> Tensor:
        """Run a stretch of layers, from `first` on and below `stop`; see `run_layer`."""
        for index in range(first, stop):
            hidden = self.run_layer(index, hidden, rotations, masks, cache)
        return hidden

    def open_cache(self, rows: int, capacity: int) -> KVCache:
        """What remembers keys and values of so many rows and columns."""
        return KVCache(self.depth, rows, capacity)
