"""What decoding returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eepolicy.decode.output_html import reply_html
from eepolicy.errors import EepolicyError
from eepolicy.speech.mel import SAMPLE_RATE
from eepolicy.speech.vocoders import Vocoder
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
        return reply_html(self.text, self.audio if speaks else None, self.trace)

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
        return SAMPLE_RATE

    @property
    def audio(self) -> Tensor:
        """The speech: (samples,) at `sampling_rate`; computed on each access.

        Raises:
            EepolicyError: the model has no vocoder.
        """
        if self.vocoder is None:
            raise EepolicyError("the model has no vocoder: pass one to HookedModel(vocoder=...)")
        return self.vocoder.decode(self.units)
