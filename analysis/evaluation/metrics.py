"""Interfaces of the models that score a reply: speech recognition, MOS prediction, a judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


class Recognizer(Protocol):
    """Speech recognition (ASR).

    A recognizer can also have `transcribe_clips(waves)`, which transcribes many short clips at
    once.  A comparison then uses it.
    """

    def transcribe(self, wave: Tensor) -> str:
        """Transcribe speech: wave (samples,) at 16 kHz."""


def transcripts_of(asr: Recognizer, waves: Sequence[Tensor]) -> list[str]:
    """Transcribe clips, at once if the recognizer can.

    Args:
        asr: speech recognition.
        waves: waveforms, (samples,) each, at 16 kHz.
    """
    at_once: Callable[[Sequence[Tensor]], list[str]] | None = getattr(asr, "transcribe_clips", None)
    return [asr.transcribe(wave) for wave in waves] if at_once is None else at_once(waves)


class Rater(Protocol):
    """Prediction of the mean opinion score (MOS)."""

    def rate(self, wave: Tensor) -> float:
        """Predict the MOS of speech, from 1 to 5: wave (samples,) at 16 kHz."""


class AnswerJudge(Protocol):
    """Scoring of a reply's content."""

    def judge(
        self, question: Mapping[str, Any], reply: str, is_transcript: bool = True
    ) -> float | None:
        """Score a reply from 0 to 1; None if the judge gives no score."""


@dataclass(frozen=True)
class SpeechMetrics:
    """The models that score replies.  The columns of a model that is None stay empty.

    Attributes:
        asr: speech recognition, for WER and the accuracy in speech.
        mos: prediction of the mean opinion score.
        judge: scores transcripts, or texts if there is no transcript.
    """

    asr: Recognizer | None = None
    mos: Rater | None = None
    judge: AnswerJudge | None = None

    @property
    def rates(self) -> bool:
        """Whether there is a rater."""
        return self.mos is not None

    @property
    def rater_name(self) -> str:
        """Class of the rater."""
        return type(self.mos).__name__

    def identity(self) -> dict[str, str | None]:
        """Names of the models that all records of a run share."""
        asr = None if self.asr is None else getattr(self.asr, "name", type(self.asr).__name__)
        judge = None if self.judge is None else repr(self.judge)
        return {"speech recognition": asr, "judge": judge}

    def load(self) -> SpeechMetrics:
        """The models, which are loaded already."""
        return self


class MetricsSource(Protocol):
    """Loads the models that score replies, in any process; see `SpeechMetrics`."""

    @property
    def judge(self) -> AnswerJudge | None:
        """The judge, which the process of the comparison calls."""

    @property
    def rates(self) -> bool:
        """Whether there is a rater."""

    @property
    def rater_name(self) -> str:
        """Class of the rater, if there is one."""

    def identity(self) -> dict[str, str | None]:
        """Names of the models that all records of a run share, without loading them."""

    def load(self) -> SpeechMetrics:
        """Load speech recognition and the rater."""
