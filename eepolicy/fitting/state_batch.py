"""The states of some replies, as a step of fitting reads them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class StateBatch:
    """The states of some replies.

    Attributes:
        states: (positions, width) that the head reads: of all positions of the replies one after
            the other, or of the chosen positions alone.
        last: (chosen, width) after the last layer.
        chosen: (positions,) of bool, the positions to fit on.
        lengths: (replies,) number of positions of each reply, prompts included.
        ids: (positions,) of the tokens, for a drafter.
    """

    states: Tensor
    last: Tensor
    chosen: Tensor
    lengths: Tensor
    ids: Tensor | None = None

    def padded(self) -> tuple[Tensor, Tensor]:
        """States (replies, longest, width), padded on the right, and chosen (replies, longest)."""
        lengths = self.lengths.tolist()
        states = pad_sequence(self.states.split(lengths), batch_first=True)
        return states, pad_sequence(self.chosen.split(lengths), batch_first=True)

    def split(self, padded: int) -> list[StateBatch]:
        """Groups of replies whose padded states have at most so many positions, or of one reply."""
        lengths = self.lengths.tolist()
        rows = max(1, padded // max(lengths))
        chosen = [int(part.sum()) for part in self.chosen.split(lengths)]
        # without the states of whole replies, those of the chosen positions are split alike
        kept = lengths if len(self.states) == len(self.chosen) else chosen
        starts = range(0, len(lengths), rows)

        def grouped(tensor: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
            parts: tuple[Tensor, ...] = torch.split(
                tensor, [sum(sizes[i : i + rows]) for i in starts]
            )
            return parts

        groups = zip(
            grouped(self.states, kept),
            grouped(self.last, chosen),
            grouped(self.chosen, lengths),
            self.lengths.split(rows),
            [None] * len(starts) if self.ids is None else grouped(self.ids, lengths),
            strict=True,
        )
        return [StateBatch(*group) for group in groups]
