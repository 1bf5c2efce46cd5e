"""The interface of whatever runs a model's layers: eager, compiled, or as CUDA graphs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from eepolicy.model.families import Rotation
from eepolicy.model.kv_cache import KVCache


class LayerExecutor(ABC):
    """Runs the decoder layers of a model, which count from 0, and reads logits out."""

    @property
    @abstractmethod
    def depth(self) -> int:
        """Number of decoder layers, which is full depth."""

    @property
    @abstractmethod
    def num_layers(self) -> int:
        """Number of decoder layers, those of the exit heads included."""

    @property
    def has_one_head(self) -> bool:
        """Whether one head reads out all depths of a backbone without exit heads."""
        return True

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
    def logits(
        self, hidden: Tensor, depth: int, vocab_ranges: Sequence[tuple[int, int]] = ()
    ) -> Tensor:
        """Read logits out of hidden states at a depth; see `Backbone.logits`."""

    def run_layers(
        self,
        first: int,
        stop: int,
        hidden: Tensor,
        rotations: dict[str, Rotation],
        masks: dict[str, Tensor | None],
        cache: KVCache,
    ) -> Tensor:
        """Run consecutive layers.

        Args:
            first: index of the first layer.
            stop: index after the last layer.
            hidden: (rows, columns, width).
            rotations: cosines and sines of the columns, by kind of attention.
            masks: attention masks, by kind of attention; see `Backbone.block_masks`.
            cache: stores the new keys and values.

        Returns:
            (rows, columns, width).
        """
        for index in range(first, stop):
            hidden = self.run_layer(index, hidden, rotations, masks, cache)
        return hidden

    def open_cache(self, rows: int, capacity: int) -> KVCache:
        """Create a cache for `rows` rows of up to `capacity` columns."""
        return KVCache(self.num_layers, rows, capacity)
