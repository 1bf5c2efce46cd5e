"""Speech of replies: synthesis, recognition and rating, as work items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import soundfile
import torch
from torch import Tensor

from eepolicy.analysis.evaluation.formats import RatingLine, Speech, SpeechLine
from eepolicy.analysis.evaluation.metrics import MetricsSource, SpeechMetrics, transcripts_of
from eepolicy.errors import EepolicyError
from eepolicy.io import write_atomically
from eepolicy.speech.mel import SAMPLE_RATE
from eepolicy.speech.vocoders import Vocoder


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
    """

    speech: SpeechLine
    ratings: list[RatingLine]


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
        """Write the sound of the clips, transcribe and rate them.

        The result depends on the item alone, so any process can do it at any time.
        """
        waves = {clip: self.vocoder.decode(torch.tensor(clip.units)) for clip in item.clips}
        new = [clip for clip in item.clips if clip.is_new]
        for clip in new:
            if len(waves[clip]):
                write_atomically(clip.file, partial(_write_flac, wave=waves[clip]))
        transcripts = self._transcribe([waves[clip] for clip in new])
        speech = [
            Speech(speech=c.speech, seconds=len(waves[c]) / SAMPLE_RATE, transcript=transcript)
            for c, transcript in zip(new, transcripts, strict=True)
        ]
        ratings = [self._rate(clip.speech, waves[clip]) for clip in item.clips if clip.rated]
        return SoundResult(SpeechLine(clips=speech), ratings)

    def _rate(self, speech: str, wave: Tensor) -> RatingLine:
        rater = self.metrics.mos
        mos = rater.rate(wave) if rater is not None and len(wave) else None
        return RatingLine(speech=speech, rater=type(rater).__name__, mos=mos)

    def _transcribe(self, waves: Sequence[Tensor]) -> Sequence[str | None]:
        if self.metrics.asr is None:
            return [None] * len(waves)
        return transcripts_of(self.metrics.asr, waves)


def _write_flac(file: Path, wave: Tensor) -> None:
    try:
        soundfile.write(file, wave.numpy(), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    except soundfile.LibsndfileError as error:
        raise OSError(str(error)) from error


def make_stage(vocoder: Vocoder | None, metrics: MetricsSource) -> SoundStage:
    """Load the models of a stage; each process calls it once.

    Args:
        vocoder: turns units into sound.
        metrics: loads the models that score replies.
    """
    torch.set_num_threads(1)  # a process per core
    if vocoder is None:
        raise EepolicyError("the model has no vocoder: pass one to HookedModel(vocoder=...)")
    return SoundStage(vocoder, metrics.load())
