"""Judges what was read out early, once the full model has caught up."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from eepolicy.decode.acceptance import Acceptance, Drafts
from eepolicy.decode.batch import Batch
from eepolicy.decode.reply import Reply
from eepolicy.decode.sampling import Sampler
from eepolicy.decode.step import StepOutput


class DraftVerifier:
    """Applies an acceptance to the drafts of the rows.

    Args:
        batch: of the rows.
        sampler: that the drafts were drawn by.
        accept: the rule.
        most: drafts of a row that may go unjudged after a step.
        history: (row, tokens of its reply) -> its tokens before the next one, the prompt included,
            for processors that ask for them.
    """

    def __init__(
        self,
        batch: Batch,
        sampler: Sampler,
        accept: Acceptance,
        most: int,
        history: Callable[[int, list[int]], Tensor],
    ) -> None:
        self.batch, self.sampler, self.accept, self.most = batch, sampler, accept, most
        self.history = history
        self._early = accept.uses_early and sampler.do_sample

    def take(
        self,
        rows: list[int],
        replies: list[Reply],
        tokens: list[int],
        scores: Tensor,
        taken: StepOutput,
        last: list[bool],
    ) -> dict[int, int]:
        """Take the rows' new tokens, and judge their drafts where they can or must be.

        Drafts that must be judged are run up to full depth together, and all are read out at once.

        Args:
            rows: of the batch, that took a step.
            replies: of all rows.
            tokens: that were drawn, one a row of the step.
            scores: (rows, vocabulary) that they were drawn from.
            taken: the step; what it caught up are the columns that drafts were read out of, and the
                newest one.
            last: the token ends its reply, so it must be judged.

        Returns:
            Columns to drop, by row.
        """
        full, due = self.batch.model.depth, []
        seen: dict[int, Tensor] = {}  # (drafts, width) at full depth, by row
        for place, row in enumerate(rows):
            reply, depth = replies[row], taken.depth[place]
            if depth == full and reply.drafts:
                seen[row] = taken.caught_up[place][:-1]
                continue
            reply.take(tokens[place], depth, (taken.readouts[place], *self.batch.paid(row)))
            if depth < full:
                reply.drafts.append(scores[place].clone() if self._early else scores[place, :0])
                if last[place] or len(reply.drafts) > self.most:
                    due.append(row)
        before = {row: self.batch.paid(row) for row in due}
        states = seen | self.batch.flush(due)
        if not states:
            return {}
        order = sorted(states)
        logits = self.batch.read(torch.cat([states[row] for row in order]), full)
        drops: dict[int, int] = {}
        for row, own in zip(order, logits.split([len(states[row]) for row in order]), strict=True):
            reply, place = replies[row], rows.index(row)
            drafts = len(reply.drafts)
            kept, replacement = self._judge(row, reply, own)
            paid = [
                b - a for a, b in zip(before.get(row, (0, 0, 0)), self.batch.paid(row), strict=True)
            ]
            costs = (drafts + (taken.readouts[place] if row in seen else 0), *paid)
            if replacement is not None:
                self._replace(reply, kept, replacement, costs)
                drops[row] = drafts - kept - (row not in seen)
                continue
            reply.keep()
            if row in seen:
                reply.take(tokens[place], full, costs)
            else:
                reply.pay(costs)
        return drops

    def _judge(self, row: int, reply: Reply, logits: Tensor) -> tuple[int, int | None]:
        """How many drafts stay, and the token in place of the first that does not.

        Args:
            row: of the batch.
            reply: of the row.
            logits: (drafts, vocabulary) of the full model.
        """
        count, tokens = len(reply.drafts), reply.tokens
        before = range(len(tokens) - count, len(tokens))
        asked = self.sampler.needs_history
        histories = [self.history(row, tokens[:i]) for i in before] if asked else None
        drafts = Drafts(
            tokens=torch.tensor(tokens[-count:], device=logits.device),
            full=self.sampler.warp(logits, [row] * count, histories),
            early=torch.stack(reply.drafts),
            do_sample=self.sampler.do_sample,
            uniforms=self.sampler.uniforms(count).to(logits.device),
        )
        accepted = self.accept.accepts(drafts).tolist()
        if all(accepted):
            return count, None
        kept = accepted.index(False)
        scores = self.accept.scores(drafts, kept)
        return kept, int(self.sampler.draw(scores[None], [0], 1))

    def _replace(self, reply: Reply, kept: int, token: int, costs: tuple[int, ...]) -> None:
        """Put a token of the full model in place of the drafts behind the first ones."""
        spent = reply.reject(kept)
        total = tuple(a + b for a, b in zip(spent, costs, strict=True))
        reply.take(token, self.batch.model.depth, total, verdict=2)
