"""A KV cache that stands for many positions, to check windows without running a long text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from eepolicy.model.backbone import Backbone

#: windows and other features of the config beyond this many positions are not checked, because
#: the keys of one layer would take too much memory
MAX_POSITION = 20_000
#: positions after the longest window
MARGIN = 8

#: names in a config, or in its rotary parameters, of positions from which attention changes
_FEATURES = (
    "sliding_window",
    "attention_chunk_size",
    "window_size",
    "floor_scale",
    "original_max_position_embeddings",
)


def limits_of(backbone: Backbone) -> list[int]:
    """The windows and other limits up to `MAX_POSITION` that the config names."""
    return [value for value in _limits(vars(backbone.text_config)) if value <= MAX_POSITION]


def far_position(backbone: Backbone) -> int | None:
    """A position beyond every window and other limit that the config names.

    Returns:
        None where the config names no limit up to `MAX_POSITION`.
    """
    limits = limits_of(backbone)
    if not limits:
        return None
    most = backbone.parts.max_positions
    position = max(limits) + MARGIN
    return position if most is None else min(position, most - 1)


def _limits(values: dict[str, Any]) -> Iterator[int]:
    """The values of all features of a config, those of its parts included."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _limits(value)
        elif name in _FEATURES and isinstance(value, (int, float)) and value > 0:
            yield int(value)


class FarCache(DynamicCache):  # type: ignore[misc]
    """A cache whose earlier positions have equal scores and values that depend on the position.

    Attention over them is a mean, so every position that a mask hides changes the result, and
    those at the ends of windows change it most.  Only the layer that runs has memory.

    Args:
        length: number of earlier positions.
        windows: numbers of positions that a layer may attend to.
    """

    def __init__(self, length: int, windows: Sequence[int] = ()) -> None:
        super().__init__()
        self.length = length
        self._scale = torch.full((length,), length**0.5)
        for window in windows:
            first = max(0, length - window - 1)
            self._scale[first : first + 4] = length / 2

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of earlier positions."""
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Number of positions, new ones included, and the first of them."""
        return self.length + query_length, 0

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append new keys and values to the earlier ones, (rows, heads, tokens, d) each."""
        generator = torch.Generator().manual_seed(layer_idx)
        column = torch.randn(self.length, generator=generator) * self._scale
        shape = (*values.shape[:2], self.length, values.shape[3])
        earlier = column.to(values)[:, None].expand(shape)
        empty = keys.new_zeros(()).expand(*keys.shape[:2], self.length, keys.shape[3])
        return torch.cat([empty, keys], 2), torch.cat([earlier, values], 2)
