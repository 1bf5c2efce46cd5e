"""One reply while it is decoded: its tokens, its drafts, and the position of its next token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from eepolicy.guard import Guard
from eepolicy.modality import ChunkClock, TokenLayout
from eepolicy.policies import ExitPolicy, Step
from eepolicy.policies.history import CallCosts, History
from eepolicy.policies.state import PolicyState, check_state
from eepolicy.trace import DraftStatus, TokenCost, TraceEntry


class Reply:
    """The tokens of one row.

    Args:
        layout: layout of the model.
        full_depth: number of layers of the model.
        ends: ids that end the reply.

    Attributes:
        entries: trace entry of each token.
        draft_scores: (vocab,) each, scores of the newest tokens that are not verified yet.
        verification: number of drafts of the last verification, and number of accepted ones.
        just_verified: whether the last step made that verification.
        newest_logits: (vocab,) logits of the newest token, for policies with `needs_history`.
        policy_state: what the policy keeps of the row, in the newest step.
    """

    def __init__(
        self,
        layout: TokenLayout,
        full_depth: int,
        ends: frozenset[int],
        policy_state: PolicyState | None = None,
    ) -> None:
        self.layout, self.full_depth, self.ends = layout, full_depth, ends
        self.entries: list[TraceEntry] = []
        self.draft_scores: list[Tensor] = []
        self.verification, self.just_verified = (0, 0), False
        self.newest_logits: Tensor | None = None
        self.policy_state = policy_state
        #: state of the policy in the step of each token
        self._policy_states: list[PolicyState | None] = []
        #: clock before each token, and before the next one
        self._clocks = [ChunkClock(layout)]

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def ended(self) -> bool:
        """Whether the newest token ends the reply."""
        return bool(self.entries) and self.entries[-1].token in self.ends

    @property
    def tokens(self) -> list[int]:
        """Ids of the reply so far."""
        return [entry.token for entry in self.entries]

    @property
    def num_drafts(self) -> int:
        """Number of newest tokens that are not verified yet."""
        return len(self.draft_scores)

    def step_fields(self) -> tuple[int, int, int, int, int, int]:
        """Modality, chunk, phase, position, ordinal and number of drafts; see `Step`."""
        clock, position = self._clocks[-1], len(self.entries)
        return clock.modality, clock.chunk, clock.phase, position, clock.ordinal, self.num_drafts

    def history_fields(self) -> tuple[int, int, int, int, bool]:
        """Token, depth, number of drafts, accepted ones, and whether just verified: `History`."""
        newest = self.entries[-1] if self.entries else None
        token, depth = (-1, 0) if newest is None else (newest.token, newest.depth)
        return token, depth, *self.verification, self.just_verified

    def begin_step(self, policy_state: PolicyState | None) -> None:
        """A step for the next token begins, with a state of the policy."""
        self.policy_state, self.just_verified = policy_state, False

    def append(
        self,
        token: int,
        depth: int,
        cost: TokenCost,
        status: DraftStatus = DraftStatus.UNVERIFIED,
        draft_scores: Tensor | None = None,
    ) -> None:
        """Add a token that was read out at a depth.

        Args:
            token: its id.
            depth: the depth.
            cost: its computation.
            status: what the verification did to it.
            draft_scores: (vocab,) scores of a draft, which a verification may reject.

        Raises:
            EepolicyError: the id belongs to no modality, and it is no draft.
        """
        modality, chunk, phase, *_ = self.step_fields()
        since = 0
        if depth < self.full_depth:
            since = 1 + self._since_refresh()
        self.entries.append(TraceEntry(token, modality, chunk, phase, depth, since, cost, status))
        self._policy_states.append(self.policy_state)
        clock = self._clocks[-1].copy()
        if token not in self.ends:
            clock.advance(token, is_draft=draft_scores is not None)
        self._clocks.append(clock)
        if draft_scores is not None:
            self.draft_scores.append(draft_scores)

    def _since_refresh(self) -> int:
        """Number of newest tokens that all exited early."""
        return self.entries[-1].since_refresh if self.entries else 0

    def add_cost(self, cost: TokenCost) -> None:
        """Add to the cost of the newest token."""
        self.entries[-1].cost += cost

    def accept_drafts(self) -> None:
        """All drafts were accepted.

        Raises:
            EepolicyError: a draft belongs to no modality.
        """
        self.verification, self.just_verified = (self.num_drafts, self.num_drafts), True
        for entry in self.entries[len(self.entries) - self.num_drafts :]:
            entry.draft_status = DraftStatus.ACCEPTED
            if entry.token not in self.ends | {*self.layout.ends}:
                self.layout.modality(entry.token)
        self.draft_scores = []

    def reject_drafts(self, num_accepted: int) -> TokenCost:
        """Keep the first drafts and drop the others; returns the cost of the dropped ones."""
        num_drafts = self.num_drafts
        first = len(self.entries) - num_drafts + num_accepted
        rejected, self.entries = self.entries[first:], self.entries[:first]
        self._clocks = self._clocks[: first + 1]
        # the replacement gets the state in which its draft was made
        self.policy_state, self._policy_states = (
            self._policy_states[first],
            self._policy_states[:first],
        )
        self.draft_scores = self.draft_scores[:num_accepted]
        self.accept_drafts()
        self.verification = num_drafts, num_accepted
        return sum((entry.cost for entry in rejected), TokenCost())


def first_states(policy: ExitPolicy, num_rows: int) -> list[PolicyState | None]:
    """What a policy keeps of each row before the first step."""
    with Guard(policy, "begin"):
        state = policy.begin(num_rows)
    state = check_state(policy, state, num_rows)
    return [None if state is None else state.select([i]) for i in range(num_rows)]


def history_of(replies: Sequence[Reply]) -> History:
    """The history of some replies, for a policy with `needs_history`."""
    # (5, rows), on the host
    known = torch.tensor([reply.history_fields() for reply in replies]).T
    logits = [reply.newest_logits for reply in replies]
    return History(known[0], known[1], known[2], known[3], known[4].bool(), logits)


def policy_step(
    policy: ExitPolicy, replies: Sequence[Reply], full_depth: int, costs: CallCosts | None = None
) -> Step:
    """Begin a step of some replies: what the policy knows of each of them.

    Args:
        policy: exit policy, whose state of each reply is updated.
        replies: the replies, which keep the state.
        full_depth: number of layers of the model.
        costs: measured costs, for a policy with `needs_costs`.
    """
    # (rows,) each, on the host
    known = torch.tensor([reply.step_fields() for reply in replies]).unbind(1)
    fields = known[0], known[1], known[2], known[3], known[4]
    history = history_of(replies) if policy.needs_history else None
    states = [reply.policy_state for reply in replies if reply.policy_state is not None]
    state = type(states[0]).join(states) if states else None
    step = Step(*fields, full_depth, history, state, costs, known[5])
    if state is not None:
        with Guard(policy, "update"):
            state = policy.update(step)
        state = check_state(policy, state, len(replies))
        step = replace(step, state=state)
    for i, reply in enumerate(replies):
        reply.begin_step(None if state is None else state.select([i]))
    return step
