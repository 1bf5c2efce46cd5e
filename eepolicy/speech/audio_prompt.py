"""Spoken prompts: what a model hears, put in place of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Encoder(Protocol):
    """Hears a wave."""

    def encode(self, wave: Tensor) -> list[Tensor]:
        """Pieces of (tokens, width) from (samples,) at 16 kHz."""
        ...


@dataclass(frozen=True)
class AudioPrompt:
    """How what is heard stands in a prompt.

    Attributes:
        encoder: hears.
        start: id in front of a piece.
        patch: id that holds the place of what was heard.
        end: id behind it.
    """

    encoder: Encoder
    start: int
    patch: int
    end: int

    def encode(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """The part of a prompt that a wave makes.

        Args:
            wave: (samples,) at 16 kHz, in -1..1.

        Returns:
            Ids (tokens,), `patch` wherever something was heard, and what that is: (patches, width).
        """
        pieces = self.encoder.encode(wave)
        ids: list[int] = []
        for piece in pieces:
            ids += [self.start, *[self.patch] * len(piece), self.end]
        return torch.tensor(ids), torch.cat(pieces)
