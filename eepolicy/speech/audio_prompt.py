"""Spoken prompts: embeddings from an audio encoder that replace those of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class AudioEncoder(Protocol):
    """Turns a waveform into embeddings of the decoder."""

    def encode(self, wave: Tensor) -> list[Tensor]:
        """Encode a waveform: (samples,) at 16 kHz -> a list of segments (tokens, width)."""
        ...


@dataclass(frozen=True)
class AudioPrompt:
    """How a prompt contains the output of an audio encoder.

    Attributes:
        encoder: the audio encoder.
        start: id of the token before a segment.
        patch: id of the token that each embedding replaces.
        end: id of the token after a segment.
    """

    encoder: AudioEncoder
    start: int
    patch: int
    end: int

    def encode(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a waveform as a part of a prompt.

        Args:
            wave: (samples,) at 16 kHz, in -1..1.

        Returns:
            Ids (tokens,), and the embeddings of those that are `patch`, (patches, width).
        """
        segments = self.encoder.encode(wave)
        ids: list[int] = []
        for segment in segments:
            ids += [self.start, *[self.patch] * len(segment), self.end]
        return torch.tensor(ids), torch.cat(segments)
