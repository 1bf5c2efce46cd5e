"""Audio files: read common formats as 16 kHz mono, and write WAV, FLAC and Ogg."""

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

#: formats that `write_audio` writes, by suffix
FORMATS = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG"}
#: samples that are written at once
PIECE = 65_536


def read_wave(path: str | Path | io.BytesIO) -> Tensor:
    """Read WAV, FLAC, Ogg or MP3, mix it down to one channel and resample it.

    Args:
        path: the audio file, or its content.

    Returns:
        (samples,) at 16 kHz.

    Raises:
        EepolicyError: the file is missing or empty, or is not an audio file.
    """
    name = path if isinstance(path, str | Path) else "the content of a sound file"
    try:
        wave, rate = soundfile.read(path, dtype="float32", always_2d=True)  # (samples, channels)
    except (OSError, soundfile.LibsndfileError) as error:
        raise EepolicyError(f"{name} cannot be read as audio: {error}") from error
    if not len(wave):
        raise EepolicyError(f"{name} is empty: expected at least one sample")
    return resampled(wave.mean(1), rate)


def resampled(wave: NDArray[np.float32] | Tensor, rate: int, new_rate: int = SAMPLE_RATE) -> Tensor:
    """Resample a waveform.

    Args:
        wave: (samples,) at `rate`.
        rate: samples per second.
        new_rate: samples per second of the result.

    Returns:
        (samples,) at `new_rate`.
    """
    if isinstance(wave, Tensor):
        if rate == new_rate or not len(wave):
            return wave
        wave = wave.detach().float().cpu().numpy()
    if rate != new_rate:
        # late: scipy.signal takes 0.5 s of CPU to import, and speech at 16 kHz does not need it
        from scipy.signal import resample_poly

        common = math.gcd(rate, new_rate)
        wave = resample_poly(wave, new_rate // common, rate // common)
    return torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32))


def audio_bytes(wave: Tensor, rate: int, format: str) -> bytes:
    """Encode speech as a file in memory.

    Args:
        wave: (samples,).
        rate: samples per second.
        format: one of the values of `FORMATS`.
    """
    file = io.BytesIO()
    _write(file, wave, rate, format)
    return file.getvalue()


def _write(file: io.BytesIO | Path, wave: Tensor, rate: int, format: str) -> None:
    """Write speech in pieces: the Vorbis encoder copies a piece to the stack of the process."""
    samples = wave.detach().float().cpu().numpy()  # as vocoders of users return them
    with soundfile.SoundFile(file, "w", rate, 1, format=format) as opened:
        for start in range(0, len(samples), PIECE):
            opened.write(samples[start : start + PIECE])


def check_suffix(path: str | Path) -> None:
    """Check that a path has the suffix of a format that `write_audio` writes.

    Raises:
        EepolicyError: it has another one.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise EepolicyError(f"speech is written as {', '.join(FORMATS)}; got {path}")


def write_audio(path: str | Path, wave: Tensor, rate: int = SAMPLE_RATE) -> None:
    """Write speech as WAV, FLAC or Ogg Vorbis, by the suffix of the path.

    Args:
        path: the file to write.
        wave: (samples,) in -1..1.
        rate: samples per second.

    Raises:
        EepolicyError: the suffix is none of these, or the file cannot be written.
    """
    check_suffix(path)
    kind = FORMATS[Path(path).suffix.lower()]

    def write(part: Path) -> None:
        try:
            _write(part, wave, rate, kind)
        except soundfile.LibsndfileError as error:
            raise OSError(str(error)) from error

    write_atomically(path, write, 2 * wave.numel())
