"""Logits to the next token, by transformers' own warpers."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from eepolicy.errors import EepolicyError


class Sampler:
    """Greedy, or sampling where a temperature is given.

    Args:
        temperature: divides the logits; None for greedy decoding.
        top_p: the likeliest tokens that hold this much probability are kept.
        seed: of the draws.

    Raises:
        EepolicyError: `top_p` without a temperature, or a value out of range.
    """

    def __init__(self, temperature: float | None = None, top_p: float = 1.0, seed: int = 0) -> None:
        if temperature is None and top_p != 1.0:
            raise EepolicyError("top_p needs a temperature: without one decoding is greedy")
        if temperature is not None and temperature <= 0:
            raise EepolicyError(f"a temperature is above 0, or None for greedy; got {temperature}")
        if not 0 < top_p <= 1:
            raise EepolicyError(f"top_p is above 0 and at most 1; got {top_p}")
        self.greedy = temperature is None
        self.generator = torch.Generator().manual_seed(seed)
        self.warpers = LogitsProcessorList()
        if temperature is not None:
            self.warpers.append(TemperatureLogitsWarper(float(temperature)))
            if top_p < 1:
                self.warpers.append(TopPLogitsWarper(top_p))

    def warp(self, logits: Tensor) -> Tensor:
        """What tokens are drawn from: (rows, vocabulary) -> (rows, vocabulary)."""
        if self.greedy:
            return logits
        return self.warpers(torch.empty(len(logits), 0, dtype=torch.long), logits.float())

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
        if self.greedy:
            return scores.argmax(-1)
        probabilities = torch.ones(batch, scores.shape[1])
        probabilities[rows] = scores.softmax(-1).cpu()
        lots = torch.multinomial(probabilities, 1, generator=self.generator)[rows, 0]
        return lots.to(scores.device)

    def lots(self, count: int) -> Tensor:
        """Numbers in 0..1: (count,)."""
        return torch.rand(count, generator=self.generator)
