"""What an adaptive policy is shown, computed when it is touched and counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from eepolicy.policies import Readout


class LazyReadout:
    """A look at one depth; see `eepolicy.policies.Readout`.

    Args:
        depth: layers that have run.
        hidden: (rows, width) after them.
        read: hidden states and a depth to logits (rows, vocabulary).
        previous: the look before at this step, of the same rows.
        full: the look at full depth, for policies that are not realisable.
    """

    def __init__(
        self,
        depth: int,
        hidden: Tensor,
        read: Callable[[Tensor, int], Tensor],
        previous: LazyReadout | None = None,
        full: LazyReadout | None = None,
    ) -> None:
        self.depth = depth
        self.hidden = hidden
        self.previous = previous
        self.full = full
        self._read = read

    @cached_property
    def logits(self) -> Tensor:
        return self._read(self.hidden, self.depth)

    @cached_property
    def log_probabilities(self) -> Tensor:
        return self.logits.float().log_softmax(-1)

    @cached_property
    def top1(self) -> Tensor:
        return self.logits.argmax(-1)

    @cached_property
    def entropy(self) -> Tensor:
        return -(self.log_probabilities.exp() * self.log_probabilities).sum(-1)

    @cached_property
    def confidence(self) -> Tensor:
        return self.log_probabilities.amax(-1).exp()

    @cached_property
    def margin(self) -> Tensor:
        first, second = self.log_probabilities.topk(2, -1).values.exp().unbind(-1)
        return first - second

    def cosine(self, other: Readout) -> Tensor:
        return torch.cosine_similarity(self.hidden.float(), other.hidden.float(), dim=-1)

    @property
    def paid(self) -> int:
        """Head evaluations of each row at this look: 0 or 1."""
        return int("logits" in vars(self))

    @property
    def cost(self) -> int:
        """Head evaluations of each row at this step so far: one a depth."""
        depths: set[int] = set()
        look: LazyReadout | None = self
        while look is not None:
            depths |= {r.depth for r in (look, look.full) if r is not None and r.paid}
            look = look.previous
        return len(depths)

    def select(self, rows: Sequence[int]) -> LazyReadout:
        """The look of some of the rows; what was computed for them stays computed."""
        index = torch.tensor(rows, device=self.hidden.device)
        chosen = LazyReadout(
            self.depth,
            self.hidden[index],
            self._read,
            self.previous.select(rows) if self.previous else None,
            self.full.select(rows) if self.full else None,
        )
        if self.paid:
            vars(chosen)["logits"] = self.logits[index]
        return chosen
