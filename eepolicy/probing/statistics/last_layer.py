"""The last layer's distributions, with which earlier layers are compared."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eepolicy.errors import EepolicyError

#: lower bound of logits and log-probabilities: with -inf, `0 * log(0)` would be nan
MIN_LOG = -1e30


@dataclass(frozen=True, eq=False)
class LastLayer:
    """Distributions of some rows at full depth.

    Attributes:
        probabilities: (rows, vocabulary).
        entropy: (rows,) nats.
        top1: (rows,) ids of the most probable tokens.
        logs: (rows, vocabulary) log-probabilities; None if no statistic needs them.
    """

    probabilities: Tensor
    entropy: Tensor
    top1: Tensor
    logs: Tensor | None = None

    @classmethod
    def of(cls, logits: Tensor, keep_logs: bool = True) -> LastLayer:
        """Compute the distributions.

        Args:
            logits: (rows, vocabulary).
            keep_logs: keep the log-probabilities too.
        """
        logs = logits.log_softmax(-1).clamp_(min=MIN_LOG)
        probabilities = logs.exp()
        entropy = -dot(probabilities, logs)
        return cls(probabilities, entropy, argmax(logits), logs if keep_logs else None)

    @property
    def log_probabilities(self) -> Tensor:
        """(rows, vocabulary).

        Raises:
            EepolicyError: they were not kept.
        """
        if self.logs is None:
            raise EepolicyError(
                "probe keeps the last layer's log-probabilities only for statistics that need "
                "them: declare Statistic(needs_last_logs=True)"
            )
        return self.logs

    def __getitem__(self, rows: slice) -> LastLayer:
        return LastLayer(*(tensor[rows] for tensor in self.tensors()))

    def tensors(self) -> list[Tensor]:
        """The fields that are not None, in order."""
        fields = (self.probabilities, self.entropy, self.top1, self.logs)
        return [tensor for tensor in fields if tensor is not None]


def argmax(logits: Tensor) -> Tensor:
    """Index of the highest value: (rows, n) -> (rows,).

    On a CPU numpy takes a tenth of torch's time.
    """
    if logits.device.type != "cpu":
        return logits.argmax(-1)
    return torch.from_numpy(logits.detach().numpy().argmax(-1))


def dot(left: Tensor, right: Tensor) -> Tensor:
    """Scalar products of rows: (rows, n) twice -> (rows,)."""
    product: Tensor = torch.linalg.vecdot(left, right)
    return product
