"""Tries what scores replies before any reply is made: a late failure would cost hours of work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from eepolicy.analysis.evaluation.metrics import AnswerJudge, SpeechMetrics
from eepolicy.errors import Caught, EepolicyError, described
from eepolicy.hooked import HookedModel
from eepolicy.speech.audio import resampled
from eepolicy.speech.mel import SAMPLE_RATE
from eepolicy.speech.vocoders import sampling_rate_of

#: units per second where the model card does not give the rate
RATE = 25
#: a question with a right answer and one without, each with a reply
REPLIES: tuple[tuple[dict[str, Any], str], ...] = (
    ({"question": "What color is snow?", "keys": ["white"]}, "Snow is white."),
    ({"question": "Name a tree.", "keys": None}, "An oak is a tree."),
)


def preflight(model: HookedModel, metrics: SpeechMetrics) -> list[str]:
    """Run the vocoder, the recognizer, the rater and the judge once.

    The vocoder decodes one second of speech units.  The recognizer and the rater get its sound, or
    a tone if the model has no vocoder.  The judge scores two replies.  All parts are tried, so that
    one error names every part that fails.

    Args:
        model: the model whose replies are to be scored.
        metrics: what scores them.

    Returns:
        Sentences on results that are possible but unlikely, such as a judge that rejects a right
        answer.

    Raises:
        EepolicyError: at least one part fails, or returns what it may not.

    Examples:
        >>> import eepolicy
        >>> preflight(eepolicy.load("pocket"), SpeechMetrics())
        []
    """
    failures: list[str] = []
    wave: Tensor | None = tone(1.0)
    with torch.random.fork_rng():  # vocoders may draw random numbers
        vocoder, asr, mos = model.vocoder, metrics.asr, metrics.mos
        if vocoder is not None:
            wave = _try(f"the vocoder {vocoder!r}", lambda: _decode(model), failures)
        if wave is not None:
            sound = wave
            if asr is not None:
                _try("speech recognition", lambda: _transcribe(asr.transcribe(sound)), failures)
            if mos is not None:
                _try("the MOS predictor", lambda: _rate(mos.rate(sound)), failures)
        notes = None
        if metrics.judge is not None:
            judge = metrics.judge
            notes = _try("the judge", lambda: _judge(judge), failures)
    if failures:
        raise EepolicyError("before any reply was made, " + "; ".join(failures))
    return notes or []


def tone(seconds: float) -> Tensor:
    """A tone of 220 Hz, (samples,) at 16 kHz."""
    times = torch.arange(round(seconds * SAMPLE_RATE))
    return torch.sin(times * (2 * torch.pi * 220 / SAMPLE_RATE)) / 4


def first_units(model: HookedModel, seconds: float) -> Tensor:
    """The first units of the codebook, repeated for some seconds of speech: (units,)."""
    rate = model.card.rate if model.card is not None and model.card.rate else RATE
    return torch.arange(max(1, round(seconds * rate))) % max(1, model.layout.num_units)


def _try(part: str, action: Callable[[], Any], failures: list[str]) -> Any:
    """The result of an action; a failure is noted and gives None."""
    with Caught() as caught:
        return action()
    assert caught.error is not None
    failures.append(f"{part} failed: {described(caught.error)}")
    return None


def _decode(model: HookedModel) -> Tensor:
    """One second of sound: (samples,)."""
    assert model.vocoder is not None
    wave = model.vocoder.decode(first_units(model, 1.0))
    if not isinstance(wave, Tensor) or wave.ndim != 1 or not wave.is_floating_point():
        got = tuple(wave.shape) if isinstance(wave, Tensor) else type(wave).__name__
        raise EepolicyError(f"it returns floats (samples,); got {got}")
    if not len(wave) or not bool(wave.isfinite().all()):
        raise EepolicyError("its sound is empty or contains NaN")
    return resampled(wave, sampling_rate_of(model.vocoder))


def _transcribe(transcript: object) -> None:
    if not isinstance(transcript, str):
        raise EepolicyError(f"it returns a string; got {transcript!r}")


def _rate(rating: object) -> None:
    if not isinstance(rating, float) or not 0 <= rating <= 5:
        raise EepolicyError(f"it returns a rating from 1 to 5; got {rating!r}")


def _judge(judge: AnswerJudge) -> list[str]:
    """Notes on the scores of two replies."""
    scores = {
        reply: judge.judge(question, reply, is_transcript=False) for question, reply in REPLIES
    }
    unread = [reply for reply, score in scores.items() if score is None]
    if unread:
        raise EepolicyError(f"its response on the reply {unread[0]!r} contains no score")
    (known, reply), *_ = REPLIES
    if scores[reply] == 0:
        return [f"The judge calls {reply!r} a wrong answer to {known['question']!r}."]
    return []
