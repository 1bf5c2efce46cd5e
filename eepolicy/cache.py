"""Keys and values of one row, layer by layer, and the positions whose upper layers wait."""

from __future__ import annotations

import torch
from torch import Tensor


class LayeredCache:
    """Keys and values in one preallocated block a layer; layers may hold different lengths.

    Positions fill each layer in order, so a layer's length says which positions it has.  The
    object is handed to stock attention layers as `past_key_values`.

    Attributes:
        lengths: positions held, one number a layer.
    """

    def __init__(self, layers: int, capacity: int) -> None:
        self.capacity = capacity
        self.lengths = [0] * layers
        self._keys: list[Tensor | None] = [None] * layers
        self._values: list[Tensor | None] = [None] * layers

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values at a layer; called by the attention.

        Args:
            keys: (1, heads, new, d).
            values: (1, heads, new, d).
            layer_idx: the layer, from 0.
            *args: not used; the stock caches take more.
            **kwargs: likewise.

        Returns:
            All keys and values of the layer: (1, heads, length, d) each.
        """
        start = self.lengths[layer_idx]
        end = start + keys.shape[2]
        held_keys, held_values = self._keys[layer_idx], self._values[layer_idx]
        if held_keys is None or held_values is None:
            shape = (*keys.shape[:2], self.capacity, keys.shape[3])
            held_keys, held_values = keys.new_empty(shape), values.new_empty(shape)
            self._keys[layer_idx], self._values[layer_idx] = held_keys, held_values
        held_keys[:, :, start:end] = keys
        held_values[:, :, start:end] = values
        self.lengths[layer_idx] = end
        return held_keys[:, :, :end], held_values[:, :, :end]

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values that a layer holds: (1, heads, length, d) each."""
        keys, values = self._keys[index], self._values[index]
        if keys is None or values is None:
            raise IndexError(f"layer {index} holds nothing yet")
        return keys[:, :, : self.lengths[index]], values[:, :, : self.lengths[index]]


class Pending:
    """Positions that exited early: their hidden states wait at the input of a layer.

    Later positions wait no deeper than earlier ones: whoever runs a layer takes along all that wait
    there, since it attends to them.  So a stack of (layer, hidden states) holds them all.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[int, Tensor]] = []

    def __len__(self) -> int:
        return sum(h.shape[1] for _, h in self._waiting)

    def take(self, layer: int, block: Tensor) -> Tensor:
        """Put what waits at a layer in front of the block that is about to run it.

        Args:
            layer: from 0.
            block: (1, tokens, width).

        Returns:
            (1, waiting + tokens, width), positions in order.
        """
        while self._waiting and self._waiting[-1][0] == layer:
            block = torch.cat([self._waiting.pop()[1], block], dim=1)
        return block

    def put(self, layer: int, block: Tensor) -> None:
        """Let a block wait at the input of a layer."""
        self._waiting.append((layer, block))
