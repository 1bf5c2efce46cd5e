"""Logits to the next token, by transformers' own processors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation import logits_process as stock

#: processors that look at the scores alone
_WITHOUT_HISTORY = (
    stock.EpsilonLogitsWarper,
    stock.EtaLogitsWarper,
    stock.InfNanRemoveLogitsProcessor,
    stock.LogitNormalization,
    stock.MinPLogitsWarper,
    stock.TemperatureLogitsWarper,
    stock.TopKLogitsWarper,
    stock.TopPLogitsWarper,
    stock.TypicalLogitsWarper,
)


class Sampler:
    """Processes logits, and takes the likeliest token or draws one.

    Processors that may look at the tokens before are called once for all rows that are equally long
    and have the same ones.  They must follow from those alone: rejected tokens are gone from them.

    Args:
        processors: of each row of the batch, in their order.
        do_sample: tokens are drawn; otherwise the likeliest one is taken.
        seed: of the draws.
    """

    def __init__(
        self, processors: Sequence[LogitsProcessorList], do_sample: bool, seed: int
    ) -> None:
        self.processors, self.do_sample = processors, do_sample
        self.generator = torch.Generator().manual_seed(seed)
        #: whether `warp` must be told the tokens before
        self.needs_history = any(type(p) not in _WITHOUT_HISTORY for p in processors[0])

    def warp(self, logits: Tensor, rows: list[int], histories: Sequence[Tensor] | None) -> Tensor:
        """What tokens are taken from: (tokens, vocabulary) -> (tokens, vocabulary) in float32.

        Args:
            logits: of the tokens.
            rows: of the batch, that each token is of.
            histories: of each token, those before it, (tokens,), the prompt included; needed only
                where `needs_history`.
        """
        if not self.processors[0]:
            return logits.float()
        logits = logits.to(torch.float32, copy=True)  # processors may write into them
        if not self.needs_history:
            none = torch.empty(len(logits), 0, dtype=torch.long, device=logits.device)
            scores: Tensor = self.processors[0](none, logits)
            return scores
        assert histories is not None
        alike: dict[tuple[int, ...], list[int]] = {}
        for place, (row, ids) in enumerate(zip(rows, histories, strict=True)):
            key = (len(ids), *map(id, self.processors[row]))
            alike.setdefault(key, []).append(place)
        if len(alike) == 1:
            scores = self.processors[rows[0]](torch.stack(list(histories)), logits)
            return scores
        scores = torch.empty_like(logits)
        for places in alike.values():
            ids = torch.stack([histories[place] for place in places])
            scores[places] = self.processors[rows[places[0]]](ids, logits[places])
        return scores

    def draw(self, scores: Tensor, rows: list[int], batch: int) -> Tensor:
        """The next tokens.

        Lots are drawn for every row of the batch, as the stock `generate` does, so that one seed
        gives its tokens.

        Args:
            scores: (rows, vocabulary), from `warp`.
            rows: which rows of the batch they are of.
            batch: its rows, those included that have ended.

        Returns:
            (rows,).
        """
        if not self.do_sample:
            return scores.argmax(-1)
        probabilities = torch.ones(batch, scores.shape[1])
        probabilities[rows] = scores.softmax(-1).cpu()
        uniforms = torch.multinomial(probabilities, 1, generator=self.generator)[rows, 0]
        return uniforms.to(scores.device)

    def uniforms(self, count: int) -> Tensor:
        """Numbers in 0..1: (count,)."""
        return torch.rand(count, generator=self.generator)
