"""Scores of a given reply, each token at the depth where its policy would exit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

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
    model: Backbone,
    layout: TokenLayout,
    policy: ExitPolicy,
    sequences: Sequence[Tensor],
    num_scored: Sequence[int],
) -> list[ForcedScores]:
    """Score the last tokens of sequences as replies to the tokens before them.

    Decoding with `catch_up` would have the same scores if it produced these tokens.  A layer runs
    once for all sequences.

    Args:
        model: the model.
        layout: its layout.
        policy: exit policy, checked against the model.
        sequences: (tokens,) prompt and reply each.
        num_scored: number of tokens of each reply, at least 1 and fewer than of its sequence.
    """
    states, scores = _States(model, sequences, num_scored), []
    for row, (ids, number) in enumerate(zip(sequences, num_scored, strict=True)):
        reply = Reply(layout, model.depth, frozenset(), policy.begin(1))
        logits, depths = [], []
        for index, token in enumerate(ids[-number:].tolist()):
            step = _step(policy, reply, model.depth)
            readout = _exit(model, policy, step, partial(states.at, row, index))
            logits.append(readout.logits[0])
            depths.append(readout.depth)
            reply.newest_logits = readout.logits[0]
            reply.append(token, readout.depth, TokenCost())
        scores.append(ForcedScores(torch.stack(logits), depths))
    return scores


class _States:
    """Hidden states by depth; a layer runs when the first depth behind it is read.

    Sequences are padded on the right, which causal attention does not see.

    Args:
        model: the model.
        sequences: (tokens,) each; the last token is not fed.
        num_scored: number of last tokens of each whose states are read.
    """

    def __init__(
        self, model: Backbone, sequences: Sequence[Tensor], num_scored: Sequence[int]
    ) -> None:
        self._model = model
        fed = [ids[:-1] for ids in sequences]
        self._spans = [slice(len(f) - n, len(f)) for f, n in zip(fed, num_scored, strict=True)]
        self._layers = model.hidden_states(pad_sequence(fed, batch_first=True))
        self._states: list[list[Tensor]] = []  # (tokens scored, width) a row, depth 1 first

    def at(self, row: int, index: int, depth: int) -> Tensor:
        """The state that is read at a depth, of a scored token: (1, width)."""
        while len(self._states) < depth:
            hidden = next(self._layers)
            number = len(self._states) + 1
            if number in self._model.branches:
                hidden = self._model.branch_states(hidden, number)
            spans = enumerate(self._spans)
            self._states.append([hidden[i, span].clone() for i, span in spans])
        return self._states[depth - 1][row][index : index + 1]


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
    model: Backbone, policy: ExitPolicy, step: Step, state_at: Callable[[int], Tensor]
) -> LazyReadout:
    """The readout at which a token exits; `state_at` gives its state at a depth."""
    source = ReadoutSource(_reader(model), predict=model.exit_probability)
    limit = int(policy.depths(step)[0])
    if not 1 <= limit <= model.depth:
        raise EepolicyError(f"{policy!r} gave depth {limit}; scores need 1 to {model.depth}")
    full = None
    if policy.needs_full_pass:
        full = LazyReadout(model.depth, state_at(model.depth), source)
    last: LazyReadout | None = None
    for depth in policy.candidate_depths(step):
        if not depth < limit:
            break
        last = LazyReadout(depth, state_at(depth), source, last, full)
        if bool(policy.should_exit(step.to(last.hidden.device), depth, last)[0]):
            return last
    return LazyReadout(limit, state_at(limit), source, last, full)


def _reader(model: Backbone) -> Callable[[Tensor, int, object], Tensor]:
    """Logits of states at a depth, without regard to their rows."""
    return lambda hidden, depth, _rows: model.logits(hidden, depth)
