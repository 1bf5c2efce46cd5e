"""What an adaptive policy sees at a depth: computed on access, and counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.policies import Readout


@dataclass(frozen=True)
class ReadoutSource:
    """Where the readouts of some rows come from.

    Attributes:
        read: function from hidden states (rows, width), depth and rows to logits (rows, vocab).
        rows: rows of the batch, ascending.
        predict: function from hidden states and depth to probabilities of agreement (rows,); see
            `Readout.exit_probability`.
    """

    read: Callable[[Tensor, int, Sequence[int]], Tensor]
    rows: Sequence[int] = ()
    predict: Callable[[Tensor, int], Tensor] | None = None

    def select(self, indices: Sequence[int]) -> ReadoutSource:
        """The source of some of the rows."""
        if not self.rows:
            return self
        return replace(self, rows=[self.rows[i] for i in indices])


class LazyReadout:
    """A readout at one depth; see `eepolicy.policies.Readout`.

    Args:
        depth: layers that have run.
        hidden: (rows, width), hidden states after them.
        source: gives the logits of these rows.
        previous: readout of the same rows at the previous candidate depth of this step.
        full: readout at full depth, for policies with `needs_full_pass`.
    """

    def __init__(
        self,
        depth: int,
        hidden: Tensor,
        source: ReadoutSource,
        previous: LazyReadout | None = None,
        full: LazyReadout | None = None,
    ) -> None:
        self.depth = depth
        self.hidden = hidden
        self.previous = previous
        self.full = full
        self.source = source

    @cached_property
    def logits(self) -> Tensor:
        return self.source.read(self.hidden, self.depth, self.source.rows)

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

    @cached_property
    def exit_probability(self) -> Tensor:
        if self.source.predict is None:
            raise EepolicyError("this readout has no exit predictor; see Readout.exit_probability")
        return self.source.predict(self.hidden, self.depth)

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
            self.source.select(rows),
            self.previous.select(rows) if self.previous else None,
            self.full.select(rows) if self.full else None,
        )
        if self.is_evaluated:
            vars(selected)["logits"] = self.logits[index]
        return selected
