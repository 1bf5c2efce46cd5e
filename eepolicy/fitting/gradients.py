"""Gradients of heads from the distribution of the last layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eepolicy.fitting.config import FitConfig
from eepolicy.fitting.losses import grad_of
from eepolicy.heads.base import ExitHead
from eepolicy.heads.lens import LogitLens
from eepolicy.model.backbone import Backbone


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Compute no gradients of the weights of a module inside the block."""
    required = [(p, p.requires_grad) for p in module.parameters()]
    module.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, requires_grad in required:
            parameter.requires_grad_(requires_grad)


@dataclass(frozen=True)
class Teacher:
    """The last layer at some positions.

    Attributes:
        lens: norm and output embedding of the model.
        states: (positions, width), the states of the last layer.
        depth: number of layers of the model.
    """

    lens: LogitLens
    states: Tensor
    depth: int

    @classmethod
    def of(cls, model: Backbone, states: Tensor) -> Teacher:
        """The last layer of a model: states (positions, width) of any type."""
        return cls(model.lens, states.to(model.model.dtype), model.depth)

    @torch.no_grad()
    def chunks(self, chunk: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield parts of the positions with their probabilities: (chunk, vocabulary) of float32."""
        rows, device = len(self.states), self.states.device.type
        for start in range(0, rows, chunk):
            part = slice(start, min(start + chunk, rows))
            with torch.autocast(device, enabled=False):  # the target is exact
                logits = self.lens.logits(self.states[part], self.depth)
            yield part, logits.float().softmax(-1)


@dataclass(frozen=True)
class HeadStates:
    """What the head of a depth reads at some positions.

    Attributes:
        depth: the depth.
        states: (positions, width).  A branch or a drafter has computed them.
        weight: weight of the loss on them.
    """

    depth: int
    states: Tensor
    weight: float = 1.0


def add_gradients(
    heads: ExitHead,
    read: Sequence[HeadStates],
    teacher: Teacher,
    config: FitConfig,
    total: int | None = None,
) -> None:
    """Add the gradient of the mean loss over positions to the weights of the heads.

    The logits of one depth and of `config.chunk` positions are in memory at a time.

    Args:
        heads: heads that are fitted.
        read: what the heads read at these positions.  The losses on them add up.
        teacher: the last layer at these positions.
        config: loss and chunk.
        total: number of positions of the mean; by default the number of these states.
    """
    rows = total or len(teacher.states)
    leaves = [one.states.detach().requires_grad_(one.states.requires_grad) for one in read]
    for part, target in teacher.chunks(config.chunk):
        for one, leaf in zip(read, leaves, strict=True):
            logits = heads.logits(leaf[part], one.depth).float()
            gradient = grad_of(config.loss, logits.detach(), target)
            logits.backward(gradient.div_(rows / one.weight))
    # together: the states of a step of drafting lead to those of the next
    whole = [(one.states, leaf.grad) for one, leaf in zip(read, leaves, strict=True)]
    whole = [pair for pair in whole if pair[1] is not None]
    if whole:
        torch.autograd.backward([states for states, _ in whole], [grad for _, grad in whole])
