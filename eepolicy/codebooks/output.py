"""What decoding with several codebooks returns."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from eepolicy.codebooks.trace import CodebookTrace
from eepolicy.codebooks.vocoder import CodebookVocoder
from eepolicy.decode.output_html import depth_strip, reply_html
from eepolicy.errors import EepolicyError
from eepolicy.guard import Guard
from eepolicy.probing import ProbeResult
from eepolicy.returned import check_wave
from eepolicy.speech.audio import resampled


@dataclass(frozen=True, eq=False)
class CodebookOutput:
    """One reply in frames of several codes.

    Attributes:
        prompt: (tokens,) ids of the prompt, without padding; empty for embeddings.
        codes: (frames, codebooks), with the frame that ends the reply if it came; -1 for codes that
            are left out.
        ended: whether the reply ended with an end frame.
        trace: depths, numbers of codebooks and costs of each frame.
        seconds: time to decode the whole batch in seconds, prompts included.
        time_to_first_frame: time until the first frames of the batch, in seconds.
        inputs: (tokens + frames - 1, width), what the backbone read; for `probe`.
        vocoder: turns codes into sound; None for a model without one.
        record: statistics of the backbone's layers that ran, if `record` was set.
    """

    prompt: Tensor
    codes: Tensor
    ended: bool
    trace: CodebookTrace
    seconds: float
    time_to_first_frame: float
    inputs: Tensor = field(repr=False)
    vocoder: CodebookVocoder | None = field(default=None, repr=False)
    record: ProbeResult | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"CodebookOutput({self.seconds:.2f} s, {self.trace!r})"

    @property
    def frames(self) -> Tensor:
        """The codes without the end frame: (frames, codebooks)."""
        return self.codes[:-1] if self.ended else self.codes

    @property
    def sampling_rate(self) -> int:
        """Samples per second of `audio`.

        Raises:
            EepolicyError: the model has no vocoder.
        """
        return self._vocoder().sampling_rate

    @property
    def audio(self) -> Tensor:
        """The speech: (samples,) at `sampling_rate`; computed on each access.

        Raises:
            EepolicyError: the model has no vocoder.
        """
        vocoder = self._vocoder()
        with torch.no_grad(), Guard(vocoder, "decode"):
            wave = vocoder.decode(self.frames)
        return check_wave(vocoder, wave)

    def audio_at(self, rate: int) -> Tensor:
        """The speech at another sampling rate: (samples,).

        Args:
            rate: samples per second.

        Raises:
            EepolicyError: the model has no vocoder.
        """
        return resampled(self.audio, self.sampling_rate, rate)

    def _repr_html_(self) -> str:
        """The reply in a notebook: a player, and the depth of each frame in the backbone."""
        speaks = self.vocoder is not None and len(self.frames)
        sound = (lambda: (self.audio, self.sampling_rate)) if speaks else None
        return reply_html(repr(self), sound, depth_strip(self.trace.backbone, unit="frame"))

    def _vocoder(self) -> CodebookVocoder:
        if self.vocoder is None:
            raise EepolicyError("the model has no vocoder: set model.vocoder")
        return self.vocoder
