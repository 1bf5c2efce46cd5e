"""Scores of a given reply, each token at the depth where its policy would exit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eepolicy.decode.config import EarlyExitConfig
from eepolicy.decode.fills import CatchUp
from eepolicy.decode.readout import LazyReadout, ReadoutSource
from eepolicy.decode.reply import Reply, history_of
from eepolicy.errors import EepolicyError
from eepolicy.modality import TokenLayout
from eepolicy.model.backbone import Backbone
from eepolicy.policies import ExitPolicy, Step
from eepolicy.trace import TokenCost


@dataclass(frozen=True)
class ForcedScores:
    """Scores of the tokens of a reply.

    Attributes:
        logits: (tokens, vocab) of the readouts that would produce the tokens.
        depth: depth of each readout.
    """

    logits: Tensor
    depth: list[int]


def check_scorable(config: EarlyExitConfig) -> None:
    """Refuse options of early exit that give the tokens of a reply no scores of their own.

    With `catch_up`, every layer sees the keys and values of the full model.  The hidden states of
    all depths therefore come from one pass over prompt and reply.  Other fills change them.

    Raises:
        EepolicyError: another fill, an acceptance rule, or a policy that reads measured costs.
    """
    policy = config.policy
    if config.fill != CatchUp() or config.accept.verifies or policy.needs_costs:
        raise EepolicyError(
            f"log-likelihoods are defined for fill='catch_up' and accept='all'; got {policy!r}, "
            f"{config.fill!r} and {config.accept!r}: give policy alone, or policy='full', or use "
            "tasks that generate"
        )


@torch.no_grad()
def forced_scores(
    model: Backbone, layout: TokenLayout, policy: ExitPolicy, ids: Tensor, num_scored: int
) -> ForcedScores:
    """Score the last tokens of a sequence as the reply to the tokens before them.

    Decoding with `catch_up` would have the same scores if it produced these tokens.

    Args:
        model: the model.
        layout: its layout.
        policy: exit policy, checked against the model.
        ids: (tokens,) prompt and reply.
        num_scored: number of tokens of the reply, at least 1 and fewer than `ids`.
    """
    states = _States(model, ids[None, :-1], num_scored)
    reply = Reply(layout, model.depth, frozenset(), policy.begin(1))
    logits, depths = [], []
    for index, token in enumerate(ids[-num_scored:].tolist()):
        readout = _exit(model, policy, _step(policy, reply, model.depth), states, index)
        logits.append(readout.logits[0])
        depths.append(readout.depth)
        reply.newest_logits = readout.logits[0]
        reply.append(token, readout.depth, TokenCost())
    return ForcedScores(torch.stack(logits), depths)


class _States:
    """Hidden states by depth; a layer runs when the first depth behind it is read.

    Args:
        model: the model.
        ids: (1, tokens), fed tokens.
        num_scored: number of last tokens whose states are read.
    """

    def __init__(self, model: Backbone, ids: Tensor, num_scored: int) -> None:
        self._model, self._num_scored = model, num_scored
        self._layers = model.hidden_states(ids)
        self._states: list[Tensor] = []  # (tokens scored, width), depth 1 first

    def at(self, depth: int, index: int) -> Tensor:
        """The state that is read at a depth, of a scored token: (1, width)."""
        while len(self._states) < depth:
            hidden = next(self._layers)
            number = len(self._states) + 1
            if number in self._model.branches:
                hidden = self._model.branch_states(hidden, number)
            self._states.append(hidden[0, -self._num_scored :])
        return self._states[depth - 1][index : index + 1]


def _step(policy: ExitPolicy, reply: Reply, full_depth: int) -> Step:
    """What the policy knows of the next token, and a step of the reply begins."""
    # (1,) each
    modality, chunk, phase, position, ordinal, drafts = torch.tensor([reply.step_fields()]).unbind(
        1
    )
    history = history_of([reply]) if policy.needs_history else None
    step = Step(
        modality,
        chunk,
        phase,
        position,
        ordinal,
        full_depth,
        history,
        reply.policy_state,
        None,
        drafts,
    )
    if step.state is not None:
        step = replace(step, state=policy.update(step))
    reply.begin_step(step.state)
    return step


def _exit(
    model: Backbone, policy: ExitPolicy, step: Step, states: _States, index: int
) -> LazyReadout:
    """The readout at which a token exits."""
    source = ReadoutSource(_reader(model), predict=model.exit_probability)
    limit = int(policy.depths(step)[0])
    if not 1 <= limit <= model.depth:
        raise EepolicyError(f"{policy!r} gave depth {limit}; scores need 1 to {model.depth}")
    full = None
    if policy.needs_full_pass:
        full = LazyReadout(model.depth, states.at(model.depth, index), source)
    last: LazyReadout | None = None
    for depth in policy.candidate_depths(step):
        if not depth < limit:
            break
        last = LazyReadout(depth, states.at(depth, index), source, last, full)
        if bool(policy.should_exit(step.to(last.hidden.device), depth, last)[0]):
            return last
    return LazyReadout(limit, states.at(limit, index), source, last, full)


def _reader(model: Backbone) -> Callable[[Tensor, int, object], Tensor]:
    """Logits of states at a depth, without regard to their rows."""
    return lambda hidden, depth, _rows: model.logits(hidden, depth)
