"""Verification: the full model's scores decide which drafts stay."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eepolicy.decode.acceptance import Acceptance, Drafts
from eepolicy.decode.batch import Batch
from eepolicy.decode.reply import Reply
from eepolicy.decode.sampling import Sampler
from eepolicy.decode.step import StepOutput
from eepolicy.guard import Guard, wrong_result
from eepolicy.returned import check_flags, check_numbers
from eepolicy.trace import DraftStatus, TokenCost

#: drafts of a row that may stay unverified if `max_pending` sets no limit.  The limit bounds the
#: work that a rejected draft wastes.
MAX_UNVERIFIED = 8


@dataclass(frozen=True)
class NewTokens:
    """The tokens of a step before verification.

    Attributes:
        rows: rows of the step.
        tokens: sampled token of each row.
        scores: (rows, vocab), the scores that they were sampled from.
        ends_reply: whether each token ends its reply, so that its drafts are verified now.
    """

    rows: list[int]
    tokens: list[int]
    scores: Tensor
    ends_reply: list[bool]


class DraftVerifier:
    """Applies an acceptance rule to the drafts of the rows.

    Args:
        batch: batch that decodes.
        sampler: sampler of the drafts.
        accept: acceptance rule.
        max_unverified: drafts of a row that may stay unverified after a step.
        history: function from a row and its reply's ids to these ids with the prompt before them,
            for logits processors.
    """

    def __init__(
        self,
        batch: Batch,
        sampler: Sampler,
        accept: Acceptance,
        max_unverified: int,
        history: Callable[[int, list[int]], Tensor],
    ) -> None:
        self.batch, self.sampler, self.accept = batch, sampler, accept
        self.max_unverified, self.history = max_unverified, history
        #: what the rule keeps of each row; a row without an entry was not verified yet
        self._states: dict[int, Any] = {}
        self._keeps_scores = accept.uses_draft_scores and sampler.do_sample

    def add(self, replies: list[Reply], new: NewTokens, step: StepOutput) -> dict[int, int]:
        """Append the tokens of a step, and verify drafts where that is possible or due.

        A step at full depth has computed the full-depth states of the row's drafts.  Drafts are
        due if there are too many or if their reply ends; they then run to full depth together.  One
        head evaluation reads all these states.

        Args:
            replies: all rows; tokens are appended, and rejected drafts are removed.
            new: tokens of the step.
            step: result of the step.

        Returns:
            Number of columns to drop, by row.
        """
        states: dict[int, Tensor] = {}  # (drafts, width) at full depth, by row
        due: list[int] = []
        for i, row in enumerate(new.rows):
            reply, depth = replies[row], step.depth[i]
            if depth == self.batch.full_depth and reply.num_drafts:
                states[row] = step.pending_states[i][:-1]
                continue  # appended only if all drafts are accepted
            scores: Tensor | None = None
            if depth < self.batch.full_depth:
                scores = new.scores[i].clone() if self._keeps_scores else new.scores[i, :0]
            reply.append(new.tokens[i], depth, step.costs[i], draft_scores=scores)
            is_due = new.ends_reply[i] or reply.num_drafts > self.max_unverified
            if scores is not None and is_due:
                due.append(row)
        before = {row: self.batch.cost(row) + TokenCost() for row in due}
        states |= self.batch.flush(due)
        if not states:
            return {}
        rows = sorted(states)
        logits = self.batch.read(torch.cat([states[row] for row in rows]), self.batch.full_depth)
        dropped: dict[int, int] = {}
        for row, own in zip(rows, logits.split([len(states[row]) for row in rows]), strict=True):
            i, reply = new.rows.index(row), replies[row]
            if row in before:
                cost = self.batch.cost(row) - before[row] + TokenCost(reply.num_drafts)
                count = self._verify(row, reply, own, cost)
            else:
                cost = step.costs[i] + TokenCost(reply.num_drafts)
                count = self._verify(row, reply, own, cost, new.tokens[i])
            if count is not None:
                dropped[row] = count
        return dropped

    def _verify(
        self, row: int, reply: Reply, logits: Tensor, cost: TokenCost, token: int | None = None
    ) -> int | None:
        """Verify the drafts of one row.

        Args:
            row: the row.
            reply: reply of the row.
            logits: (drafts, vocab), of the full model.
            cost: computation of the verification and, with `token`, of its step.
            token: full-depth token after the drafts, appended if all drafts are accepted.

        Returns:
            Number of columns to drop; None if all drafts are accepted.
        """
        num_drafts = reply.num_drafts
        num_accepted, replacement = self._judge(row, reply, logits)
        if replacement is not None:
            spent = reply.reject_drafts(num_accepted)
            reply.newest_logits = logits[num_accepted]
            status = DraftStatus.REPLACEMENT
            reply.append(replacement, self.batch.full_depth, spent + cost, status)
            # the last draft of a flushed row has no successor in the cache yet
            return num_drafts - num_accepted - (token is None)
        reply.accept_drafts()
        if token is not None:
            reply.append(token, self.batch.full_depth, cost)
        else:
            reply.add_cost(cost)
        return None

    def _begin(self) -> Any:
        """State of a row that was not verified yet."""
        with Guard(self.accept, "begin"):
            return self.accept.begin()

    def _uniforms(self, count: int, row: int) -> Tensor:
        """Random numbers of drafts; greedy decoding draws none, as in the stock `generate`."""
        return self.sampler.uniforms(count, row) if self.sampler.do_sample else torch.zeros(count)

    def _judge(self, row: int, reply: Reply, logits: Tensor) -> tuple[int, int | None]:
        """Number of accepted drafts, and the replacement of the first rejected one."""
        count, tokens = reply.num_drafts, reply.tokens
        histories = None
        if self.sampler.needs_history:
            before = range(len(tokens) - count, len(tokens))
            histories = [self.history(row, tokens[:i]) for i in before]
        drafts = Drafts(
            tokens=torch.tensor(tokens[-count:], device=logits.device),
            target_scores=self.sampler.process(logits, [row] * count, histories),
            draft_scores=torch.stack(reply.draft_scores),
            do_sample=self.sampler.do_sample,
            uniforms=self._uniforms(count, row).to(logits.device),
            state=self._states[row] if row in self._states else self._begin(),
        )
        with Guard(self.accept, "accepts"):
            flags = self.accept.accepts(drafts)
        flags = check_flags(self.accept, "accepts", flags, count)
        accepted = [*map(bool, flags.tolist()), False]
        first_rejected = accepted.index(False)
        with Guard(self.accept, "next_state"):
            self._states[row] = self.accept.next_state(drafts, first_rejected)
        if first_rejected == count:
            return count, None
        with Guard(self.accept, "replacement_scores"):
            scores = self.accept.replacement_scores(drafts, first_rejected)
        scores = check_numbers(self.accept, "replacement_scores", scores, logits.shape[1:])
        token = int(self.sampler.next_token(scores, row))
        if math.isnan(float(scores[token])):
            raise wrong_result(self.accept, "replacement_scores", "nan", "scores without nan")
        return first_rejected, token
