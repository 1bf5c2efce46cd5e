"""What decoding returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eepolicy.decode.output_html import depth_strip, reply_html
from eepolicy.guard import Guard
from eepolicy.html import paragraph
from eepolicy.returned import check_wave
from eepolicy.speech.audio import resampled
from eepolicy.speech.vocoders import Vocoder, required_vocoder, sampling_rate_of
from eepolicy.trace import Trace


@dataclass(frozen=True, eq=False)
class Output:
    """One reply.

    Attributes:
        prompt: (tokens,) ids of the prompt; empty if the prompt was given as embeddings.
        tokens: (tokens,) ids of the reply, including the end token if it came.
        text: text of the reply; None without a tokenizer.
        units: (units,) speech units, counted from 0.
        ended: whether the reply ended with an end token.
        trace: depth and cost of each token.
        seconds: time to decode the whole batch in seconds, prompts included.
        ttft: time to first token of the batch, in seconds, prompts included.
        vocoder: turns units into sound; None for a model without one.
        record: a `ProbeResult` of the layers that ran, if `record` was set.
    """

    prompt: Tensor
    tokens: Tensor
    text: str | None
    units: Tensor
    ended: bool
    trace: Trace
    seconds: float
    ttft: float
    vocoder: Vocoder | None = field(default=None, repr=False)
    record: Any = None

    def __repr__(self) -> str:
        return (
            f"Output({self.text!r}, {len(self.units)} units, {self.seconds:.2f} s, {self.trace!r})"
        )

    def _repr_html_(self) -> str:
        """The reply in a notebook: its text, a player of its speech, and the depths."""
        speaks = self.vocoder is not None and len(self.units)
        sound = (lambda: (self.audio, self.sampling_rate)) if speaks else None
        depths = depth_strip(self.trace) + paragraph(repr(self.trace), small=True)
        return reply_html(self.text, sound, depths)

    @property
    def sequences(self) -> Tensor:
        """Ids of the prompt and the reply, as the stock `generate` returns them: (1, tokens)."""
        return torch.cat([self.prompt, self.tokens])[None]

    @property
    def has_audio(self) -> bool:
        """Whether the model has a vocoder."""
        return self.vocoder is not None

    @property
    def sampling_rate(self) -> int:
        """Samples per second of `audio`."""
        return sampling_rate_of(self.vocoder)

    @property
    def audio(self) -> Tensor:
        """The speech: (samples,) at `sampling_rate`; computed on each access.

        Raises:
            EepolicyError: the model has no vocoder.
        """
        vocoder = required_vocoder(self.vocoder)
        with Guard(vocoder, "decode"):
            wave = vocoder.decode(self.units)
        return check_wave(vocoder, wave)

    def audio_at(self, rate: int) -> Tensor:
        """The speech at another sampling rate: (samples,).

        Args:
            rate: samples per second.

        Raises:
            EepolicyError: the model has no vocoder.
        """
        return resampled(self.audio, self.sampling_rate, rate)
