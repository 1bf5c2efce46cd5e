"""Measure one reply."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from eepolicy.analysis.evaluation.metrics import SpeechMetrics
from eepolicy.analysis.evaluation.records import Record
from eepolicy.analysis.evaluation.scoring import is_right, word_errors
from eepolicy.decode.output import Output
from eepolicy.modality import Modality
from eepolicy.speech.mel import SAMPLE_RATE


def measure(
    output: Output,
    question: Mapping[str, Any],
    policy: str,
    metrics: SpeechMetrics,
    seed: int = 0,
) -> tuple[Record, Tensor | None]:
    """Measure one reply.

    Args:
        output: the reply.
        question: dict with `question`, and optionally `keys` and `audio`.
        policy: spec string of the policy.
        metrics: models that score the reply.  The judge gets the transcript, or the text if there
            is no transcript.
        seed: seed of sampling.

    Returns:
        The record, and the speech (samples,); None from a model without a vocoder.
    """
    wave = output.audio if output.has_audio else None
    trace, text, keys = output.trace, output.text or "", question.get("keys")
    transcript = metrics.asr.transcribe(wave) if metrics.asr and wave is not None else None
    errors, words = (None, None) if transcript is None else word_errors(text, transcript)
    is_speech = trace.modality == Modality.SPEECH
    record = Record(
        question=question["question"],
        policy=policy,
        text=text,
        transcript=transcript,
        right_text=is_right(text, keys) if keys else None,
        right_speech=is_right(transcript, keys) if keys and transcript is not None else None,
        errors=errors,
        words=words,
        mos=metrics.mos.rate(wave) if metrics.mos and wave is not None and len(wave) else None,
        ended=output.ended,
        seconds=output.seconds,
        speech_seconds=0.0 if wave is None else len(wave) / SAMPLE_RATE,
        text_tokens=int((~is_speech).sum()),
        speech_tokens=int(is_speech.sum()),
        text_layers=int(trace.depth[~is_speech].sum()),
        speech_layers=int(trace.depth[is_speech].sum()),
        layer_calls=int(trace.layer_calls.sum()),
        readouts=int(trace.readouts.sum()),
        tokens=output.tokens.tolist(),
        depths=trace.depth.tolist(),
        modalities=trace.modality.tolist(),
        seed=seed,
        spoken=bool(question.get("audio")),
        judge_score=_judge_score(metrics, question, text, transcript),
    )
    return record, wave


def _judge_score(
    metrics: SpeechMetrics, question: Mapping[str, Any], text: str, transcript: str | None
) -> float | None:
    if metrics.judge is None:
        return None
    if transcript is None:
        return metrics.judge.judge(question, text, is_transcript=False)
    return metrics.judge.judge(question, transcript, is_transcript=True)


def audio_name(question: str, policy: str) -> str:
    """Name the file of a reply's speech; it is unique per question and policy."""
    slug = "".join(c if c.isalnum() else "-" for c in policy).strip("-")
    return f"{hashlib.sha256(question.encode()).hexdigest()[:8]}_{slug}.wav"
