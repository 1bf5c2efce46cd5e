"""What a stateful policy keeps of each row while it decodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from eepolicy.errors import EepolicyError

StateT = TypeVar("StateT", bound="PolicyState")


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
