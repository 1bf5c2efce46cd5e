"""Drafts whose number and depth follow the measured acceptance rate and costs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.fields import CheckedFields, Positive, RisingDepths
from eepolicy.policies.adaptive import format_depths, parse_depths
from eepolicy.policies.base import POLICIES, ExitPolicy, On, Step, prefixed
from eepolicy.policies.history import CallCosts
from eepolicy.policies.state import PolicyState
from eepolicy.registry import parse_rest

#: largest number of drafts between two refreshes; the decoder's own default limit
MAX_DRAFTS = 8
#: acceptance rate that a row assumes at first, and its weight in verified drafts.  It is high, so
#: that each depth is tried before it is judged.
PRIOR_RATE, PRIOR_WEIGHT = 0.9, 2.0
#: factor by which older verifications count less after each refresh
DECAY = 0.95


@dataclass(frozen=True)
class DraftPlan(PolicyState):
    """What `DynamicDraft` keeps of each row.

    Attributes:
        accepted: (rows, depths) number of accepted drafts, older ones weighted less.
        rejected: (rows, depths) number of rejected drafts, weighted likewise.
        choice: (rows,) index of the depth of the current drafts.
        planned: (rows,) number of drafts before the next refresh.
        made: (rows,) number of drafts since the last refresh.
    """

    accepted: Tensor
    rejected: Tensor
    choice: Tensor
    planned: Tensor
    made: Tensor

    @property
    def rates(self) -> Tensor:
        """(rows, depths), estimated acceptance rate of a draft."""
        number = self.accepted + self.rejected + PRIOR_WEIGHT
        return (self.accepted + PRIOR_RATE * PRIOR_WEIGHT) / number


@POLICIES.register
@dataclass(frozen=True)
class DynamicDraft(CheckedFields, ExitPolicy):
    """Drafts at a shallow depth as many tokens as pays off, then refreshes at full depth.

    After each refresh it chooses the depth *d* and the number *n* of drafts with the largest
    expected number of tokens a second.  With an acceptance rate *a*, *n* drafts and a refresh give
    (1 - a^(n+1)) / (1 - a) tokens (Leviathan et al. 2022, arXiv 2211.17192, equation 1).  The rate
    of each row and depth is a running estimate from its own verifications.  The seconds are
    measured on this machine: n + 1 positions through the layers below *d* one by one, then through
    the layers above *d* together, and the head evaluations.  With equal costs for any number of
    positions this is the paper's formula, (1 - a^(n+1)) / ((1 - a)(nc + 1)), where c is *d* over
    full depth.

    It needs an acceptance rule that verifies drafts.  If the rule is lossless, the measured costs
    change the speed of a reply and not its tokens.

    Attributes:
        exit_depths: depth of the drafts, or a tuple of depths to choose from.
        on: `"speech"`, `"text"` or `"both"`.

    Examples:
        >>> DynamicDraft(6).spec
        'dynamic-draft@6'
    """

    exit_depths: Positive | RisingDepths
    on: On = "speech"
    name: ClassVar[str] = "dynamic-draft"
    usage: ClassVar[str] = "dynamic-draft@DEPTH|[DEPTH,...]"
    example: ClassVar[str] = "dynamic-draft@6"
    summary: ClassVar[str] = (
        "drafts at depth 6, as many as the measured acceptance and costs favour; "
        "with accept=exact or another rule that verifies"
    )
    paper: ClassVar[str] = "expected speed of speculative decoding, arXiv 2211.17192"
    source: ClassVar[str] = "https://arxiv.org/abs/2211.17192"
    colour: ClassVar[str] = "#009E73"
    marker: ClassVar[str] = "p"
    needs_history: ClassVar[bool] = True
    needs_costs: ClassVar[bool] = True
    needs_verification: ClassVar[bool] = True

    @cached_property
    def _depths(self) -> tuple[int, ...]:
        depths = self.exit_depths
        return (depths,) if isinstance(depths, int) else depths

    def begin(self, rows: int) -> DraftPlan:
        counts = torch.zeros(rows, len(self._depths), dtype=torch.float64)
        none = torch.zeros(rows, dtype=torch.long)
        return DraftPlan(counts, counts, none, none, none)

    def update(self, step: Step) -> DraftPlan:
        state, history = step.state, step.history
        assert isinstance(state, DraftPlan)
        assert history is not None
        starts = (history.depth == step.full_depth) | history.just_verified | (step.position == 0)
        starts = starts & step.is_on(self.on)
        # (rows, depths): the last drafts were made at one depth
        chosen = torch.nn.functional.one_hot(state.choice, len(self._depths))
        seen = chosen * history.just_verified[:, None]
        was_rejected = history.num_accepted < history.num_drafts
        decay = torch.where(starts, DECAY, 1.0)[:, None]
        accepted = decay * state.accepted + seen * history.num_accepted[:, None]
        rejected = decay * state.rejected + seen * was_rejected[:, None]
        rates = DraftPlan(accepted, rejected, state.choice, state.planned, state.made).rates
        choice, planned = best_plan(rates, self._depths, step.full_depth, step.costs)
        return DraftPlan(
            accepted,
            rejected,
            torch.where(starts, choice, state.choice),
            torch.where(starts, planned, state.planned),
            torch.where(starts, 0, state.made + (history.depth < step.full_depth)),
        )

    def depths(self, step: Step) -> Tensor:
        state = step.state
        assert isinstance(state, DraftPlan)
        drafts = step.is_on(self.on) & (state.made < state.planned)
        depth = torch.tensor(self._depths, device=state.choice.device)[state.choice]
        return torch.where(drafts, depth, step.full_depth)

    def min_depth(self, full_depth: int) -> int:
        return self._depths[0]

    def possible_depths(self, full_depth: int) -> tuple[int, ...]:
        return self._depths

    def check(self, full_depth: int) -> None:
        for depth in self._depths:
            if not 1 <= depth < full_depth:
                raise EepolicyError(
                    f"{self!r} drafts at depth {depth}, but the model has depths 1 to "
                    f"{full_depth}, and a draft is below full depth"
                )

    @classmethod
    def from_spec(cls, rest: str) -> DynamicDraft:
        (depths,) = parse_rest(r"@(\d+|\[\d+(?:,\d+)*\])", rest)
        return cls(parse_depths(depths))

    @property
    def spec(self) -> str:
        return prefixed(self.on, f"{self.name}@{format_depths(self.exit_depths)}")


def best_plan(
    rates: Tensor, depths: tuple[int, ...], full_depth: int, costs: CallCosts | None
) -> tuple[Tensor, Tensor]:
    """The depth and number of drafts with the most expected tokens a second.

    Args:
        rates: (rows, depths) acceptance rate of a draft.
        depths: depths of the drafts.
        full_depth: number of layers of the model.
        costs: measured costs; None where a layer call costs the same for any number of positions,
            and a head evaluation nothing.

    Returns:
        Index of the depth, (rows,), and number of drafts, (rows,), from 0 to `MAX_DRAFTS`.
    """
    numbers = range(MAX_DRAFTS + 1)
    # (rows, depths, numbers): 1 + a + ... + a^n, which has no pole at a = 1
    tokens = (rates[..., None] ** torch.tensor(numbers, device=rates.device)).cumsum(-1)
    seconds = [[_cycle_seconds(depth, n, full_depth, costs) for n in numbers] for depth in depths]
    speed = tokens / torch.tensor(seconds, dtype=rates.dtype, device=rates.device)
    best = speed.flatten(1).argmax(-1)
    return best // len(numbers), best % len(numbers)


def _cycle_seconds(depth: int, drafts: int, full_depth: int, costs: CallCosts | None) -> float:
    """Seconds of some drafts and the refresh that verifies them."""
    below, above = (drafts + 1) * depth, full_depth - depth
    if costs is None:
        return below + above
    # the drafts and the refresh are read out one by one, and the verification reads all drafts once
    readouts = drafts + 1 + (drafts > 0)
    layers = below * costs.of(1) + above * costs.of(drafts + 1)
    return layers + readouts * costs.readout_seconds
