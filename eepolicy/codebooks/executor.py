"""Runs the layers of a depth decoder, and reads out one codebook after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from eepolicy.codebooks.depth_heads import CodebookHead
from eepolicy.heads.fitted import FittedHead
from eepolicy.heads.lens import LogitLens
from eepolicy.model.backbone import Backbone
from eepolicy.model.executor import LayerExecutor
from eepolicy.model.families import Rotation
from eepolicy.model.kv_cache import KVCache


class CodebookExecutor(LayerExecutor):
    """A depth decoder whose output embedding is that of one codebook.

    Args:
        backbone: the depth decoder.
        heads: output embeddings of the codebooks after the first; see `CodebookAdapter.heads`.
        maps: fitted maps in front of them; None for the logit lens.
        layers: runs the layers; default: the depth decoder.

    Attributes:
        codebook: index of the codebook that is read out.
    """

    def __init__(
        self,
        backbone: Backbone,
        heads: Sequence[Callable[[Tensor], Tensor]],
        maps: FittedHead | None = None,
        layers: LayerExecutor | None = None,
    ) -> None:
        self.layers, self.maps, self.codebook = layers or backbone, maps, 1
        self._heads = [
            CodebookHead(LogitLens(backbone.parts.norm, head), maps, backbone.depth)
            for head in heads
        ]

    @property
    def depth(self) -> int:
        return self.layers.depth

    @property
    def num_layers(self) -> int:
        return self.layers.num_layers

    @property
    def has_one_head(self) -> bool:
        return self.maps is None

    def open_cache(self, rows: int, capacity: int) -> KVCache:
        return self.layers.open_cache(rows, capacity)

    def run_layer(
        self,
        index: int,
        hidden: Tensor,
        rotations: dict[str, Rotation],
        masks: dict[str, Tensor | None],
        cache: KVCache,
    ) -> Tensor:
        return self.layers.run_layer(index, hidden, rotations, masks, cache)

    def run_layers(
        self,
        first: int,
        stop: int,
        hidden: Tensor,
        rotations: dict[str, Rotation],
        masks: dict[str, Tensor | None],
        cache: KVCache,
    ) -> Tensor:
        return self.layers.run_layers(first, stop, hidden, rotations, masks, cache)

    def fill_layer(
        self, index: int, hidden: Tensor, rotations: dict[str, Rotation], cache: KVCache
    ) -> None:
        self.layers.fill_layer(index, hidden, rotations, cache)

    def logits(
        self, hidden: Tensor, depth: int, vocab_ranges: Sequence[tuple[int, int]] = ()
    ) -> Tensor:
        return self._heads[self.codebook - 1].logits(hidden, depth)
