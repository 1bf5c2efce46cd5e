"""Sound as people pass it: arrays of any sampling rate, and 16-bit samples."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.speech.audio import resampled
from eepolicy.speech.mel import SAMPLE_RATE

#: keys of sound in a dict: of the package datasets, and of the pipelines of transformers
_KEYS = ("array", "raw")
#: largest sample of a waveform in -1..1, with room for sound that is too loud
MAX_PEAK = 10.0
#: suffixes of sound files
SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".m4a")


def as_wave(value: Any) -> Any:
    """Sound as a waveform; everything else as it is.

    Args:
        value: a pair of samples and sampling rate; a dict with `array` or `raw` and
            `sampling_rate`; an array of floats, (samples,), at 16 kHz; or 16-bit samples.

    Returns:
        (samples,) in float32 at 16 kHz; or the value, if it is no sound.

    Raises:
        EepolicyError: the samples have several channels, or the rate is no positive integer.

    Examples:
        >>> import numpy as np
        >>> as_wave((np.zeros(48_000), 48_000)).shape, as_wave("Who?")
        (torch.Size([16000]), 'Who?')
    """
    samples, rate = _with_rate(value)
    if not _is_sound(samples):
        return value
    if isinstance(rate, bool) or not isinstance(rate, (int, np.integer)) or rate < 1:
        raise EepolicyError(f"a sampling rate is a number of samples a second; got {rate!r}")
    samples = torch.as_tensor(samples).detach().cpu()
    if samples.ndim != 1:
        raise EepolicyError(
            f"a waveform is one channel, (samples,); got {tuple(samples.shape)}: take a channel, "
            "or the mean of the channels"
        )
    samples = samples / 2**15 if samples.dtype == torch.int16 else samples.float()
    return resampled(samples, int(rate))


def check_wave(wave: Tensor) -> None:
    """Check a waveform, (samples,), of a prompt.

    Raises:
        EepolicyError: a sample is not a finite number, or the samples are not in -1..1.
    """
    if not bool(wave.isfinite().all()):
        raise EepolicyError("the waveform has samples that are not finite numbers")
    peak = float(wave.abs().max()) if len(wave) else 0.0
    if peak > MAX_PEAK:
        raise EepolicyError(
            f"the samples of a waveform are in -1..1; got {peak:g}: divide 16-bit samples by 32768"
        )


def warn_of_file_name(text: object) -> None:
    """Warn if a text looks like the name of a sound file."""
    if isinstance(text, str) and " " not in text and Path(text).suffix.lower() in SUFFIXES:
        warnings.warn(
            f"{text!r} is taken as a question in text; for the sound of a file give "
            f"pathlib.Path({text!r})",
            stacklevel=6,
        )


def _with_rate(value: Any) -> tuple[Any, Any]:
    """Samples and sampling rate of a pair or of a dict; other values as they are."""
    if isinstance(value, Mapping) and "sampling_rate" in value:
        arrays = [value[key] for key in _KEYS if key in value]
        return (arrays[0], value["sampling_rate"]) if arrays else (value, SAMPLE_RATE)
    # a tuple of two prompts has no number at its end
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], (Real, np.number)):
        return value
    return value, SAMPLE_RATE


def _is_sound(value: Any) -> bool:
    """Floats, or 16-bit samples; ids have other types."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind == "f" or bool(value.dtype == np.int16)
    return isinstance(value, Tensor) and (value.is_floating_point() or value.dtype == torch.int16)
