"""Tensors and structures of the layers that kernels run."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from eepolicy.compile.functional import structure_of, tensors_of
from eepolicy.compile.native import MAX_ROWS, Integers, serves
from eepolicy.heads.int8 import has_int8
from eepolicy.heads.weights import obstacle


class LayerTable:
    """The tensors of layers, and which kernel serves each layer.

    Args:
        layers: layers of the model, then those that its heads own.
        depth: number of layers of the model.
        device: device of the model; a layer on another one is not compiled.
        structures: numbers of the structures that were met so far; new ones are added.

    Attributes:
        layers: the layers.
        templates: number of the structure of each layer, which kernels are made for; None for a
            layer that is not compiled.
        obstacles: why a layer of the model is not compiled, by index.
        tensors: tensors of each layer, in the order of `tensors_of`; none where it is not compiled.
        addresses: addresses of all tensors of all layers, (layers, tensors).
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        depth: int,
        device: torch.device,
        structures: dict[Hashable, int],
    ) -> None:
        self.layers = layers
        self.templates: list[int | None] = []
        self.obstacles: dict[int, str] = {}
        self.tensors: list[tuple[Tensor, ...]] = []
        for index, layer in enumerate(layers):
            reason = obstacle(layer)
            tensors = tuple(tensors_of(layer).values())
            if reason is None and any(tensor.device != device for tensor in tensors):
                reason = "weights on another device"
            template = None
            if reason is None:
                template = structures.setdefault(structure_of(layer), len(structures))
                # the check compares layers of the model, so no other structure is compiled
                if index >= depth and template not in self.templates[:depth]:
                    template = None
            elif index < depth:
                self.obstacles[index] = reason
            self.templates.append(template)
            self.tensors.append(() if template is None else tensors)
        self._int8 = [*map(has_int8, layers)]
        self.read_addresses()

    def compiles(self, index: int, hidden: Tensor) -> bool:
        """Whether a layer runs compiled on a block (rows, columns, width).

        Weights in int8 are read by the products of few rows in the native library alone; for
        others, the stock layer converts them.
        """
        if self.templates[index] is None:
            return False
        few = hidden.shape[0] * hidden.shape[1] <= MAX_ROWS
        return not self._int8[index] or (few and serves(hidden))

    def read_addresses(self) -> None:
        """Take the addresses of all tensors anew: another dtype moves the weights."""
        self.addresses: Integers = np.zeros(
            (len(self.tensors), max(map(len, self.tensors), default=0)), np.int64
        )
        for line, tensors in zip(self.addresses, self.tensors, strict=True):
            line[: len(tensors)] = [tensor.data_ptr() for tensor in tensors]

    def span_end(self, first: int, stop: int, attention: Sequence[str]) -> int:
        """First layer after `first` that has another structure or kind of attention.

        Args:
            first: index of a layer.
            stop: index after the last layer to look at.
            attention: kind of attention of each layer.
        """
        kinds = [*zip(self.templates[first:stop], attention[first:stop], strict=True)]
        return first + next((i for i, kind in enumerate(kinds) if kind != kinds[0]), len(kinds))

    def describe_obstacles(self) -> str | None:
        """Which layers of the model are not compiled, and why; None for none."""
        if not self.obstacles:
            return None
        first, reason = next(iter(self.obstacles.items()))
        count = len(self.obstacles)
        which = f"layer {first + 1} runs" if count == 1 else f"{count} layers run"
        has = "it has" if count == 1 else f"layer {first + 1} has"
        return f"{which} uncompiled, with the same tokens: {has} {reason}"
