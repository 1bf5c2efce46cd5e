"""Speech of replies: synthesis, recognition and rating, as work items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from eepolicy.analysis.evaluation.formats import RatingLine, Speech, SpeechLine
from eepolicy.analysis.evaluation.metrics import SpeechMetrics, transcripts_of
from eepolicy.speech.audio import audio_bytes, resampled
from eepolicy.speech.mel import SAMPLE_RATE
from eepolicy.speech.vocoders import Vocoder, sampling_rate_of


@dataclass(frozen=True)
class Clip:
    """The speech of one reply.

    Attributes:
        speech: key of the speech.
        units: speech units.
        file: file to write the speech to.
        is_new: synthesize and transcribe it; otherwise only rate it.
        rated: predict its mean opinion score.
    """

    speech: str
    units: tuple[int, ...]
    file: Path
    is_new: bool = True
    rated: bool = False


@dataclass(frozen=True)
class SoundItem:
    """Distinct speech of the replies to a block of questions, by question."""

    clips: tuple[Clip, ...]


@dataclass(frozen=True)
class SoundResult:
    """What a stage made of an item.

    Attributes:
        speech: durations and transcripts of the new clips.
        ratings: scores of the rated clips.
        sounds: the file of each new clip, and what to write to it.
    """

    speech: SpeechLine
    ratings: list[RatingLine]
    sounds: list[tuple[Path, bytes]]


@dataclass(frozen=True)
class SoundStage:
    """Turns items into lines: vocoder, speech recognition and rating.

    Attributes:
        vocoder: turns units into sound.
        metrics: speech recognition and rating.
    """

    vocoder: Vocoder
    metrics: SpeechMetrics

    def __call__(self, item: SoundItem) -> SoundResult:
        """Synthesize the sound of the clips, transcribe and rate them.

        The result depends on the item alone, so any process can do it at any time.
        """
        rate = sampling_rate_of(self.vocoder)
        sounds = {
            # without units, the type would be float32
            clip: self.vocoder.decode(torch.tensor(clip.units, dtype=torch.long))
            for clip in item.clips
        }
        waves = {clip: resampled(sound, rate) for clip, sound in sounds.items()}
        new = [clip for clip in item.clips if clip.is_new]
        files = [(c.file, audio_bytes(sounds[c], rate, "FLAC")) for c in new if len(sounds[c])]
        transcripts = self._transcribe([waves[clip] for clip in new])
        speech = [
            Speech(speech=c.speech, seconds=len(waves[c]) / SAMPLE_RATE, transcript=transcript)
            for c, transcript in zip(new, transcripts, strict=True)
        ]
        ratings = [self._rate(clip.speech, waves[clip]) for clip in item.clips if clip.rated]
        return SoundResult(SpeechLine(clips=speech), ratings, files)

    def _rate(self, speech: str, wave: Tensor) -> RatingLine:
        rater = self.metrics.mos
        mos = rater.rate(wave) if rater is not None and len(wave) else None
        return RatingLine(speech=speech, rater=type(rater).__name__, mos=mos)

    def _transcribe(self, waves: Sequence[Tensor]) -> Sequence[str | None]:
        if self.metrics.asr is None:
            return [None] * len(waves)
        return transcripts_of(self.metrics.asr, waves)
