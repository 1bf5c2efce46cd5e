"""Sound files: wav written whole or not at all, and whatever is common read as 16 kHz mono."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from scipy.signal import resample_poly
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.speech.mel import SAMPLE_RATE


def read_wave(path: Path) -> Tensor:
    """Read speech from wav, flac, ogg or mp3, mixed down and resampled: (samples,) at 16 kHz.

    Raises:
        EepolicyError: the file is missing, empty or no sound.
    """
    try:
        wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, soundfile.LibsndfileError) as error:
        raise EepolicyError(f"{path} holds no sound that can be read: {error}") from error
    if not len(wave):
        raise EepolicyError(f"{path} is empty: a spoken prompt needs sound")
    return resampled(wave.mean(1), rate)


def resampled(wave: NDArray[np.float32], rate: int) -> Tensor:
    """A wave of another rate at 16 kHz: (samples,) -> (samples,)."""
    if rate != SAMPLE_RATE:
        common = math.gcd(rate, SAMPLE_RATE)
        wave = resample_poly(wave, SAMPLE_RATE // common, rate // common)
    return torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32))


def write_wav(path: Path, wave: Tensor) -> None:
    """Write speech: wave (samples,) at 16 kHz.

    Raises:
        EepolicyError: the file cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        soundfile.write(part, wave.numpy(), SAMPLE_RATE, format="WAV")
        part.replace(path)
    except (OSError, soundfile.LibsndfileError) as error:
        raise EepolicyError(f"cannot write {path}: {error}") from error
    finally:
        part.unlink(missing_ok=True)
