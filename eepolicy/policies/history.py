"""What a policy may know of a reply: its history, and what computing costs on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor


class CallCosts(Protocol):
    """Measured costs of computing on this machine, for policies with `needs_costs`."""

    @property
    def readout_seconds(self) -> float:
        """Seconds of one head evaluation."""

    def of(self, num_positions: int) -> float:
        """Seconds of one layer call on a number of positions."""


class History:
    """What happened before a step, a value for each row; for policies with `needs_history`.

    Confidence and entropy are computed on first use from the logits of the last token.

    Args:
        token: (rows,) id of the last token; -1 before the first.
        depth: (rows,) depth at which the last token was read out; 0 before the first.
        num_drafts: (rows,) number of drafts that the last verification saw; 0 before the first.
        num_accepted: (rows,) number of them that it accepted.
        just_verified: (rows,) of bool, whether the last step made that verification.
        logits: logits (vocab,) of the last token of each row; None before the first.
    """

    def __init__(
        self,
        token: Tensor,
        depth: Tensor,
        num_drafts: Tensor,
        num_accepted: Tensor,
        just_verified: Tensor,
        logits: Sequence[Tensor | None],
    ) -> None:
        self.token = token
        self.depth = depth
        self.num_drafts = num_drafts
        self.num_accepted = num_accepted
        self.just_verified = just_verified
        self._logits = tuple(logits)
        #: confidence and entropy of each row, once computed
        self._statistics: dict[int, tuple[float, float]] = {}

    @property
    def confidence(self) -> Tensor:
        """(rows,), largest probability at the readout of the last token; nan before the first."""
        return self._statistic(0)

    @property
    def entropy(self) -> Tensor:
        """(rows,), entropy in nats at the readout of the last token; nan before the first."""
        return self._statistic(1)

    def select(self, rows: Sequence[int]) -> History:
        """The history of some rows."""
        selected = self._map(lambda column: column[torch.tensor(rows, device=column.device)])
        selected._logits = tuple(self._logits[row] for row in rows)
        selected._statistics = {
            i: self._statistics[row] for i, row in enumerate(rows) if row in self._statistics
        }
        return selected

    def to(self, device: torch.device) -> History:
        """The history with its columns on another device."""
        moved = self._map(lambda column: column.to(device))
        moved._statistics = self._statistics
        return moved

    def _map(self, function: Callable[[Tensor], Tensor]) -> History:
        return History(
            function(self.token),
            function(self.depth),
            function(self.num_drafts),
            function(self.num_accepted),
            function(self.just_verified),
            self._logits,
        )

    def _statistic(self, which: int) -> Tensor:
        for row, logits in enumerate(self._logits):
            if row not in self._statistics:
                self._statistics[row] = _confidence_and_entropy(logits)
        values = [self._statistics[row][which] for row in range(len(self._logits))]
        return torch.tensor(values, device=self.token.device)


def _confidence_and_entropy(logits: Tensor | None) -> tuple[float, float]:
    """Largest probability and entropy of logits (vocab,), with one transfer to the host."""
    if logits is None:
        return float("nan"), float("nan")
    log_probabilities = logits.float().log_softmax(-1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(-1)
    confidence, nats = torch.stack([log_probabilities.amax(-1).exp(), entropy]).tolist()
    return confidence, nats
