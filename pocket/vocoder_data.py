"""Speech for the vocoder: waveforms with their units and their pitch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import parselmouth
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from eepolicy.speech.mel import HOP, SAMPLE_RATE
from eepolicy.speech.units import FRAMES, UNIT_SAMPLES, Units
from pocket.fit_units import OFFSETS, as_wave, encodings

CONTEXT = 24  # frames at each end of a part that the loss leaves out
PART = 160  # frames of a part: 1.6 s
PITCH_RANGE = (100.0, 350.0)  # Hz, of the voice


@dataclass(frozen=True)
class Clip:
    """One encoding of the speech of an answer.

    Attributes:
        samples: (units * 640,) of int16.
        units: (units,).
        pitch: (units * 4,) in Hz, interpolated where it is unvoiced.
        voiced: (units * 4,), 1 where the frame has a pitch.
    """

    samples: NDArray[np.int16]
    units: NDArray[np.int16]
    pitch: NDArray[np.float32]
    voiced: NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """Parts of clips, padded with silence outside of the clip.

    Attributes:
        wave: (rows, PART * 160).
        log_mel: (rows, PART, 80), centroids of the units.
        mask: (rows, PART), 1 inside of the clip.
        pitch: (rows, PART) in Hz.
        voiced: (rows, PART).
    """

    wave: Tensor
    log_mel: Tensor
    mask: Tensor
    pitch: Tensor
    voiced: Tensor


def pitch_of(samples: NDArray[np.int16]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return pitch in Hz and voicing of each 10 ms by Praat's autocorrelation method.

    Args:
        samples: (samples,) at 16 kHz.

    Returns:
        Two arrays of (samples // 160,).
    """
    sound = parselmouth.Sound(samples / 32767.0, SAMPLE_RATE)
    low, high = PITCH_RANGE
    track = sound.to_pitch_ac(
        time_step=0.01, pitch_floor=low, pitch_ceiling=high, voicing_threshold=0.4
    )
    times = np.arange(len(samples) // HOP) * HOP / SAMPLE_RATE
    pitch = np.array([track.get_value_at_time(t) for t in times], np.float32)
    voiced = ~np.isnan(pitch)
    if voiced.any():
        known = np.flatnonzero(voiced)
        pitch = np.interp(np.arange(len(pitch)), known, pitch[known]).astype(np.float32)
    else:
        pitch = np.full(len(times), (low * high) ** 0.5, np.float32)
    return pitch, voiced.astype(np.float32)


def clips_of(waves: dict[str, NDArray[np.int16]], units: Units, **bar: Any) -> list[Clip]:
    """Encode each waveform on both grids, and track its pitch."""
    clips = []
    for samples in tqdm(waves.values(), desc="units and pitch", unit="answer", **bar):
        pitch, voiced = pitch_of(samples)
        for offset, encoded in zip(OFFSETS, encodings(units, as_wave(samples)), strict=True):
            frames = slice(offset, offset + len(encoded) * FRAMES)
            start = offset * HOP
            clips.append(
                Clip(
                    samples[start : start + len(encoded) * UNIT_SAMPLES],
                    np.array(encoded, np.int16),
                    pitch[frames],
                    voiced[frames],
                )
            )
    return clips


def draw(clips: list[Clip], units: Units, rows: int, generator: np.random.Generator) -> Batch:
    """Draw parts of random clips, at random places.

    Args:
        clips: the speech.
        units: gives the log-mel frames of the units.
        rows: number of parts.
        generator: random generator.
    """
    parts = [_part(clips[i], units, generator) for i in generator.integers(len(clips), size=rows)]
    return Batch(*(torch.stack(column) for column in zip(*parts, strict=True)))


def _part(clip: Clip, units: Units, generator: np.random.Generator) -> tuple[Tensor, ...]:
    """A part of a clip: wave, log-mel frames, mask, pitch and voicing."""
    frames = len(clip.pitch)
    start = int(generator.integers(-CONTEXT, max(1, frames + CONTEXT - PART)))
    at = np.arange(start, start + PART)
    inside = (at >= 0) & (at < frames)
    at = at.clip(0, frames - 1)
    wave = clip.samples.reshape(frames, HOP)[at] / 32767 * inside[:, None]
    log_mel = units.codebook[clip.units[at // FRAMES].astype(np.int64)].unflatten(1, (FRAMES, -1))
    return (
        torch.from_numpy(wave.astype(np.float32).ravel()),
        log_mel[torch.arange(PART), torch.from_numpy(at % FRAMES)],
        torch.from_numpy(inside.astype(np.float32)),
        torch.from_numpy(clip.pitch[at]),
        torch.from_numpy(clip.voiced[at] * inside),
    )
