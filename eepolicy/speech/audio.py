"""Audio files: read common formats as 16 kHz mono, and write WAV."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.io import write_atomically
from eepolicy.speech.mel import SAMPLE_RATE


def read_wave(path: Path) -> Tensor:
    """Read WAV, FLAC, Ogg or MP3, mix it down to one channel and resample it.

    Args:
        path: the audio file.

    Returns:
        (samples,) at 16 kHz.

    Raises:
        EepolicyError: the file is missing or empty, or is not an audio file.
    """
    try:
        wave, rate = soundfile.read(path, dtype="float32", always_2d=True)  # (samples, channels)
    except (OSError, soundfile.LibsndfileError) as error:
        raise EepolicyError(f"{path} cannot be read as audio: {error}") from error
    if not len(wave):
        raise EepolicyError(f"{path} is empty: a spoken prompt needs at least one sample")
    return resampled(wave.mean(1), rate)


def resampled(wave: NDArray[np.float32], rate: int) -> Tensor:
    """Resample a waveform to 16 kHz.

    Args:
        wave: (samples,) at `rate`.
        rate: samples per second.

    Returns:
        (samples,) at 16 kHz.
    """
    if rate != SAMPLE_RATE:
        # late: scipy.signal takes 0.5 s of CPU to import, and speech at 16 kHz does not need it
        from scipy.signal import resample_poly

        common = math.gcd(rate, SAMPLE_RATE)
        wave = resample_poly(wave, SAMPLE_RATE // common, rate // common)
    return torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32))


def wav_bytes(wave: Tensor) -> bytes:
    """Encode speech as a WAV file in memory.

    Args:
        wave: (samples,) at 16 kHz.
    """
    file = io.BytesIO()
    soundfile.write(file, wave.numpy(), SAMPLE_RATE, format="WAV")
    return file.getvalue()


def write_wav(path: Path, wave: Tensor) -> None:
    """Write speech as a WAV file.

    Args:
        path: the file to write.
        wave: (samples,) at 16 kHz.

    Raises:
        EepolicyError: the file cannot be written.
    """

    def write(part: Path) -> None:
        try:
            soundfile.write(part, wave.numpy(), SAMPLE_RATE, format="WAV")
        except soundfile.LibsndfileError as error:
            raise OSError(str(error)) from error

    write_atomically(path, write, 2 * wave.numel())
