"""What an adaptive policy sees at a depth: computed on access, and counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from eepolicy.policies import Readout


class LazyReadout:
    """A readout at one depth; see `eepolicy.policies.Readout`.

    Args:
        depth: layers that have run.
        hidden: (rows, width), hidden states after them.
        read: function from hidden states, depth and rows to logits (rows, vocab).
        previous: readout of the same rows at the previous candidate depth of this step.
        full: readout at full depth, for policies with `needs_full_pass`.
        rows: rows of the batch, ascending; handed to `read`.
    """

    def __init__(
        self,
        depth: int,
        hidden: Tensor,
        read: Callable[[Tensor, int, Sequence[int]], Tensor],
        previous: LazyReadout | None = None,
        full: LazyReadout | None = None,
        rows: Sequence[int] = (),
    ) -> None:
        self.depth = depth
        self.hidden = hidden
        self.previous = previous
        self.full = full
        self.rows = rows
        self._read = read

    @cached_property
    def logits(self) -> Tensor:
        return self._read(self.hidden, self.depth, self.rows)

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
    def is_evaluated(self) -> bool:
        """Whether the logits were computed."""
        return "logits" in vars(self)

    @property
    def num_readouts(self) -> int:
        """Head evaluations of each row in this step so far, at most one for each depth."""
        depths: set[int] = set()
        readout: LazyReadout | None = self
        while readout is not None:
            for one in (readout, readout.full):
                if one is not None and one.is_evaluated:
                    depths.add(one.depth)
            readout = readout.previous
        return len(depths)

    def select(self, rows: Sequence[int]) -> LazyReadout:
        """Select rows; computed logits stay computed."""
        index = torch.tensor(rows, device=self.hidden.device)
        selected = LazyReadout(
            self.depth,
            self.hidden[index],
            self._read,
            self.previous.select(rows) if self.previous else None,
            self.full.select(rows) if self.full else None,
            [self.rows[i] for i in rows] if self.rows else (),
        )
        if self.is_evaluated:
            vars(selected)["logits"] = self.logits[index]
        return selected
