"""Judges what was read out early, once the full model has caught up."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from eepolicy.decode.acceptance import Acceptance, Drafts
from eepolicy.decode.batch import Batch
from eepolicy.decode.reply import Reply
from eepolicy.decode.sampling import Sampler


class Judge:
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
        self._early = accept.uses_early and sampler.draws

    def take(
        self,
        row: int,
        reply: Reply,
        token: int,
        scores: Tensor,
        depth: int,
        readouts: int,
        caught_up: Tensor | None,
        last: bool,
    ) -> int:
        """Take a row's new token, and judge its drafts where they can or must be.

        Args:
            row: of the batch.
            reply: of the row.
            token: that was drawn.
            scores: (vocabulary,) that it was drawn from.
            depth: at which it was read out.
            readouts: head evaluations that were paid for it.
            caught_up: (columns, width) at full depth, where the step ran the full model over the
                columns that the drafts were read out of; the newest column is the last one.
            last: the token ends the reply, so it must be judged.

        Returns:
            Columns that the row drops.
        """
        full = self.batch.model.depth
        if depth == full:
            if not reply.drafts:
                reply.take(token, depth, (readouts, *self.batch.paid(row)))
                return 0
            assert caught_up is not None
            drafts = len(reply.drafts)
            kept, replacement = self._judge(row, reply, caught_up[:-1])
            costs = (readouts + drafts, *self.batch.paid(row))
            if replacement is None:
                reply.keep()
                reply.take(token, depth, costs)
                return 0
            self._replace(reply, kept, replacement, costs)
            return drafts - kept
        reply.take(token, depth, (readouts, *self.batch.paid(row)))
        reply.drafts.append(scores.clone() if self._early else scores[:0])
        if not last and len(reply.drafts) <= self.most:
            return 0
        before, drafts = self.batch.paid(row), len(reply.drafts)
        kept, replacement = self._judge(row, reply, self.batch.flush(row))
        more = [b - a for a, b in zip(before, self.batch.paid(row), strict=True)]
        if replacement is None:
            reply.keep()
            reply.pay((drafts, *more))
            return 0
        self._replace(reply, kept, replacement, (drafts, *more))
        return drafts - 1 - kept

    def _judge(self, row: int, reply: Reply, hidden: Tensor) -> tuple[int, int | None]:
        """How many drafts stay, and the token in place of the first that does not.

        Args:
            row: of the batch.
            reply: of the row.
            hidden: (drafts, width) at full depth.
        """
        count, tokens = len(reply.drafts), reply.tokens
        logits = self.batch.read(hidden, self.batch.model.depth)
        before = range(len(tokens) - count, len(tokens))
        asked = self.sampler.needs_history
        histories = [self.history(row, tokens[:i]) for i in before] if asked else None
        drafts = Drafts(
            tokens=torch.tensor(tokens[-count:], device=hidden.device),
            full=self.sampler.warp(logits, [row] * count, histories),
            early=torch.stack(reply.drafts),
            draws=self.sampler.draws,
            lots=self.sampler.lots(count).to(hidden.device),
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
