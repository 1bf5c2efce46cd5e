"""What a policy may know of a reply: its history, and values that the policy keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from eepolicy.errors import EepolicyError

StateT = TypeVar("StateT", bound="PolicyState")


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
        #: confidence and entropy of each row that was asked for
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


@dataclass(frozen=True)
class PolicyState:
    """Base of what a stateful policy keeps of each row while it decodes.

    A subclass is a frozen dataclass whose fields are tensors (rows, ...) on the CPU, or other
    states.  Tensors are never changed in place: `ExitPolicy.update` returns a new state.  The
    decoder keeps the state of each token, so a rejected draft takes its state with it.

    Examples:
        >>> @dataclass(frozen=True)
        ... class Count(PolicyState):
        ...     steps: Tensor
        >>> Count(torch.tensor([3, 5])).select([1])
        Count(steps=tensor([5]))
    """

    def select(self: StateT, rows: Sequence[int]) -> StateT:
        """The state of some rows."""
        return self._map(
            lambda column: column[torch.tensor(rows, device=column.device)],
            lambda state: state.select(rows),
        )

    def to(self: StateT, device: torch.device) -> StateT:
        """The state on another device."""
        return self._map(lambda column: column.to(device), lambda state: state.to(device))

    @classmethod
    def join(cls: type[StateT], states: Sequence[StateT]) -> StateT:
        """The states of several rows, one after the other."""
        if len(states) == 1:
            return states[0]
        return cls(*(_joined([getattr(s, f.name) for s in states]) for f in fields(cls)))

    def _map(
        self: StateT,
        column: Callable[[Tensor], Tensor],
        nested: Callable[[PolicyState], PolicyState],
    ) -> StateT:
        def mapped(value: Any) -> Any:
            if isinstance(value, Tensor):
                return column(value)
            return None if value is None else nested(value)

        return type(self)(*(mapped(getattr(self, f.name)) for f in fields(self)))


def _joined(values: Sequence[Any]) -> Any:
    """One field of several states."""
    if isinstance(values[0], Tensor):
        return torch.cat(list(values))
    return None if values[0] is None else type(values[0]).join(values)


def check_state(policy: object, state: PolicyState | None, rows: int) -> PolicyState | None:
    """Refuse a state that does not have a value for each row.

    Raises:
        EepolicyError: with the policy and the shapes.
    """
    if state is None:
        return None
    if not isinstance(state, PolicyState):
        raise EepolicyError(
            f"{policy!r} keeps {state!r}; a policy's state is a subclass of PolicyState, or None"
        )
    for field in fields(state):
        value = getattr(state, field.name)
        if isinstance(value, Tensor):
            if value.ndim < 1 or len(value) != rows:
                raise EepolicyError(
                    f"{policy!r} keeps {field.name} of shape {tuple(value.shape)} for {rows} rows; "
                    "the first dimension of a state is the row"
                )
        elif value is not None:
            check_state(policy, value, rows)
    return state
