"""Replies of a policy and what is heard of them, against the replies at full depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from eepolicy import EepolicyError, HookedModel
from eepolicy.analysis.evaluation.metrics import Recognizer, transcripts_of
from eepolicy.analysis.evaluation.scoring import normalized, word_alignment, word_errors
from eepolicy.analysis.stats.divergences import warped_path
from eepolicy.analysis.studies.base import BatchOptions
from eepolicy.decode.output import Output
from eepolicy.speech.mel import SAMPLE_RATE
from eepolicy.speech.vocoders import codebook_of

#: windows of one second; the last one has the rest of the reply
WINDOWS = 4
#: columns of sums by window
SUMS = ("words", "errors", "pairs", "distance", "voiced", "semitones")


@dataclass(frozen=True, eq=False)
class Heard:
    """A reply and what was heard of it.

    Attributes:
        output: the reply.
        transcript: transcript of its speech.
        pitch: (units,) pitch of each unit in Hz, nan where it is unvoiced or not known.
    """

    output: Output
    transcript: str
    pitch: NDArray[np.float64]


def hear(
    model: HookedModel,
    questions: Sequence[str],
    policy: str,
    asr: Recognizer,
    options: BatchOptions | None = None,
) -> list[Heard]:
    """Generate replies, transcribe them and measure their pitch.

    Args:
        model: model with a vocoder.
        questions: questions in text.
        policy: spec string.
        asr: speech recognition.
        options: batch size and others.
    """
    options = options or BatchOptions()
    heard = []
    for start in options.progress(options.starts(questions)):
        part = questions[start : start + options.size]
        outputs = model.generate(part, policy, options.max_new_tokens, do_sample=False)
        transcripts = transcripts_of(asr, [out.audio_at(SAMPLE_RATE) for out in outputs])
        heard += [
            Heard(out, transcript, pitch_of(model.vocoder, out.units))
            for out, transcript in zip(outputs, transcripts, strict=True)
        ]
    return heard


def pitch_of(vocoder: Any, units: Tensor) -> NDArray[np.float64]:
    """Mean pitch of each unit's voiced frames in Hz: (units,) -> (units,); nan for none.

    It is known for a vocoder that synthesises with a pitch, such as the pocket model's.
    """
    frames = vocoder.pitch(units) if hasattr(vocoder, "pitch") else None
    if frames is None:
        return np.full(len(units), np.nan)
    values: NDArray[np.float64] = frames.double().nanmean(-1).numpy()
    return values


def heard_drift(
    model: HookedModel, replies: Sequence[Heard], full: Sequence[Heard]
) -> pd.DataFrame:
    """Compare replies with those at full depth to the same prompts.

    Args:
        model: model whose vocoder has a codebook.
        replies: replies of a policy.
        full: replies at full depth.

    Returns:
        Rows of `HeardDrift` without `policy`.

    Raises:
        EepolicyError: the model's vocoder has no codebook.
    """
    codebook = codebook_of(model.vocoder)
    if codebook is None:
        raise EepolicyError("this study needs a vocoder with a codebook: the sound of each unit")
    patches = codebook.double().numpy()
    rows = []
    for document, (own, other) in enumerate(zip(replies, full, strict=True)):
        windows = np.zeros((WINDOWS, len(SUMS)))
        _add_words(windows[:, :2], own)
        same = own.output.text == other.output.text
        if same:
            _add_sound(windows[:, 2:], own, other, patches)
        else:
            windows[:, 2:] = np.nan
        frame = pd.DataFrame(windows, columns=list(SUMS))
        frame = frame.assign(document=document, window=range(WINDOWS))
        changed, heard = word_errors(other.transcript, own.transcript)
        durations = [float(_seconds(each.output)) for each in (own, other)]
        whole = {
            "calls": int(own.output.trace.layer_calls.sum()),
            "tokens": len(own.output.trace),
            "heard": heard,
            "changed": changed,
            "replies": 1,
            "same": float(same),
            "seconds": durations[1] if same else np.nan,
            "longer": abs(durations[0] - durations[1]) if same else np.nan,
        }
        for column, value in whole.items():
            frame[column] = [value] + [np.nan] * (WINDOWS - 1)
        rows.append(frame)
    return pd.concat(rows, ignore_index=True)


def _seconds(output: Output) -> float:
    """Duration of a reply's speech."""
    return len(output.audio_at(SAMPLE_RATE)) / SAMPLE_RATE


def _windows(times: ArrayLike) -> list[int]:
    """Window of each time since the start, in seconds."""
    return [min(int(time), WINDOWS - 1) for time in np.asarray(times)]


def _add_words(windows: NDArray[np.float64], heard: Heard) -> None:
    """Add words and their errors, (windows, 2), where a word's time is its position in the text.

    A word that only the transcript has counts at the next word, or else at the last one.
    """
    words = normalized(heard.output.text or "").split()
    if not words:
        return
    errors = np.zeros(len(words))
    at = 0
    for kind, _, _ in word_alignment(heard.output.text or "", heard.transcript):
        errors[min(at, len(words) - 1)] += kind != "equal"
        at += kind != "insertion"
    centres = (np.arange(len(words)) + 0.5) / len(words)
    for window, error in zip(_windows(centres * _seconds(heard.output)), errors, strict=True):
        windows[window] += 1, error


def _add_sound(
    windows: NDArray[np.float64], own: Heard, other: Heard, patches: NDArray[np.float64]
) -> None:
    """Add number and distance of aligned units, then of voiced ones: (windows, 4)."""
    units, expected = own.output.units.numpy(), other.output.units.numpy()
    if not len(units) or not len(expected):
        return
    path, distances = warped_path(patches[units], patches[expected])
    seconds = _seconds(own.output) / len(units)
    ratio = own.pitch[path[:, 0]] / other.pitch[path[:, 1]]
    semitones = np.abs(12 * np.log2(ratio))
    for window, distance, step in zip(
        _windows(path[:, 0] * seconds), distances, semitones, strict=True
    ):
        known = not np.isnan(step)
        windows[window] += 1, distance, known, step if known else 0
