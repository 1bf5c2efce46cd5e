"""Spoken prompts: embeddings from an audio encoder that replace those of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from eepolicy.errors import EepolicyError


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


def check_shape(wave: Tensor) -> None:
    """Check that a waveform can be a prompt.

    Raises:
        EepolicyError: it is empty, or has more than one channel.
    """
    if wave.ndim != 1 or not len(wave):
        raise EepolicyError(
            "an audio prompt must have shape (samples,), at 16 kHz, with at least one sample; "
            f"got shape {tuple(wave.shape)}"
        )


def too_short(wave: Tensor, seconds: float) -> EepolicyError:
    """The error for a waveform that gives no embedding.

    Args:
        wave: (samples,) at 16 kHz.
        seconds: length that gives one.
    """
    return EepolicyError(
        f"{len(wave)} samples at 16 kHz are too short for the audio encoder: give at least "
        f"{seconds:g} s"
    )
