"""Refresh at full depth when the drift since the last refresh exceeds a threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.fields import CheckedFields, NonNegative, Positive
from eepolicy.policies.adaptive import NUMBER
from eepolicy.policies.base import POLICIES, ExitPolicy, On, Readout, Step, prefixed
from eepolicy.policies.state import PolicyState
from eepolicy.registry import parse_rest


@dataclass(frozen=True)
class DriftState(PolicyState):
    """What `DriftRefresh` keeps of each row.

    Attributes:
        drift: (rows,) surprise of the exits since the last refresh, nats.
        total: (rows,) sum of the entropies at full depth, nats.
        count: (rows,) number of these entropies.
    """

    drift: Tensor
    total: Tensor
    count: Tensor

    @property
    def usual(self) -> Tensor:
        """(rows,), mean entropy at full depth, nats; nan before the first refresh."""
        return self.total / self.count


@POLICIES.register
@dataclass(frozen=True)
class DriftRefresh(CheckedFields, ExitPolicy):
    """Exits at one depth, and refreshes at full depth when the drift exceeds a threshold.

    The *surprise* of an exit is the entropy of its readout minus the mean entropy of the reply's
    earlier full-depth positions of the modality of `on`, or zero if that is less.  The last
    position of each chunk is not counted in the mean, unless `on` is `"both"`.  The *drift* is the
    sum of the surprises since the last full-depth position, of any modality.  A position exits if
    the drift with its own surprise is at most the threshold.  Otherwise it runs to full depth, and
    the drift is zero again.  The first position of a reply that the policy acts on runs at full
    depth, since there is nothing to compare with.

    Why: the divergence of a sequence is the sum of the divergences of its tokens (chain rule).  If
    a head gives the mean of the full model's distributions over the states that look alike to it,
    its expected KL divergence from the full model is its entropy minus the mean of theirs.  The
    policy estimates that mean without the last layers, from the refreshes.  They are made where the
    exit is surprised, so the estimate may be too high, and the drift too low.

    This definition is ours.  SpecDec++ (arXiv 2405.19715) ends a run of drafts in a similar way,
    when the probability that one of them is wrong exceeds a threshold; it trains a head for it.

    Attributes:
        threshold: largest drift in nats, 0 or more.
        exit_depth: depth of the positions that exit.
        on: `"speech"`, `"text"` or `"both"`.

    Examples:
        >>> DriftRefresh(0.3, exit_depth=6).spec
        'drift>0.3@6'
    """

    threshold: NonNegative
    exit_depth: Positive
    on: On = "speech"
    name: ClassVar[str] = "drift"
    usage: ClassVar[str] = "drift>NATS@DEPTH"
    example: ClassVar[str] = "drift>0.3@6"
    summary: ClassVar[str] = (
        "exits at depth 6 until the excess entropy of the exits since the last refresh exceeds "
        "0.3 nats in all, then one position at full depth"
    )
    paper: ClassVar[str] = "compare SpecDec++, arXiv 2405.19715"
    source: ClassVar[str] = "https://arxiv.org/abs/2405.19715"
    colour: ClassVar[str] = "#0072B2"
    marker: ClassVar[str] = "v"
    needs_history: ClassVar[bool] = True

    def begin(self, rows: int) -> DriftState:
        zeros = torch.zeros(rows, dtype=torch.float64)
        return DriftState(zeros, zeros, zeros)

    def update(self, step: Step) -> DriftState:
        state, history = step.state, step.history
        assert isinstance(state, DriftState)
        assert history is not None
        entropy = history.entropy.to(state.drift)
        is_full = history.depth == step.full_depth
        # the last token is of the modality of the next one if both are in one chunk
        is_own = step.is_on(self.on) & (step.position > 0)
        if self.on != "both":
            is_own = is_own & (step.phase > 0)
        total = state.total + torch.where(is_full & is_own, entropy, 0.0)
        count = state.count + (is_full & is_own)
        exited = is_own & ~is_full & (state.count > 0)
        surprise = _surprise(entropy, state.usual)
        drift = state.drift + torch.where(exited, surprise, 0.0)
        refreshed = is_full | history.just_verified
        return DriftState(torch.where(refreshed, 0.0, drift), total, count)

    def depths(self, step: Step) -> Tensor:
        return torch.full_like(step.phase, step.full_depth)

    def candidate_depths(self, step: Step) -> tuple[int, ...]:
        state = step.state
        assert isinstance(state, DriftState)
        may_exit = step.is_on(self.on) & (state.count > 0)
        return (self.exit_depth,) if bool(may_exit.any()) else ()

    def should_exit(self, step: Step, depth: int, readout: Readout) -> Tensor:
        state = step.state
        assert isinstance(state, DriftState)
        surprise = _surprise(readout.entropy.to(state.drift), state.usual)
        # false where there was no refresh: nan
        return step.is_on(self.on) & (state.drift + surprise <= self.threshold)

    def min_depth(self, full_depth: int) -> int:
        return self.exit_depth

    def possible_depths(self, full_depth: int) -> tuple[int, ...]:
        return (self.exit_depth,)

    def check(self, full_depth: int) -> None:
        if not 1 <= self.exit_depth < full_depth:
            raise EepolicyError(
                f"{self!r} exits at depth {self.exit_depth}, but the model has depths 1 to "
                f"{full_depth}, and an exit is below full depth"
            )

    @classmethod
    def from_spec(cls, rest: str) -> DriftRefresh:
        threshold, depth = parse_rest(rf">{NUMBER}@(\d+)", rest)
        return cls(float(threshold), int(depth))

    @property
    def spec(self) -> str:
        return prefixed(self.on, f"{self.name}>{float(self.threshold)!r}@{self.exit_depth}")


def _surprise(entropy: Tensor, usual: Tensor) -> Tensor:
    """Entropy above the usual one, (rows,) each; nan where none is known."""
    return (entropy - usual).clamp(min=0)
