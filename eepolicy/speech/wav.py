"""Wav files, written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import soundfile
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.speech.mel import SAMPLE_RATE


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
