"""Prompts, policies and counters for the tests of decoding."""

from __future__ import annotations

import torch
from conftest import layers_of

from eepolicy import (
    ExitPolicy,
)
from eepolicy.policies import Step

PROMPT = torch.tensor([1, 7, 30, 12, 2])


PROMPTS = [torch.tensor(p) for p in ([1, 7, 30, 12, 2], [1, 9], [44, 3, 21, 8, 40, 50, 6], [5])]


class RandomDepths(ExitPolicy):
    """Any depth at any position, from a seed: exits pending at many layers at once."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __repr__(self) -> str:
        return "RandomDepths"

    def depths(self, step: Step) -> torch.Tensor:
        return torch.randint(1, step.full_depth + 1, step.phase.shape, generator=self.generator)


class ByPlace(ExitPolicy):
    """A depth for each position in the reply."""

    def __init__(self, depths: list[int]) -> None:
        self.table = torch.tensor(depths)

    def depths(self, step: Step) -> torch.Tensor:
        return self.table[step.position]


class LayerCounter:
    """Counts layer calls with forward hooks."""

    def __init__(self, model) -> None:
        self.calls: list[tuple[int, int, int]] = []  # layer, rows, columns
        self.handles = [
            layer.register_forward_pre_hook(
                lambda _, args, i=index: self.calls.append((i, *args[0].shape[:2]))
            )
            for index, layer in enumerate(layers_of(model))
        ]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()
