"""Short windows for speech recognition: which clips fit, batches of them, and two checks."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eepolicy.errors import EepolicyError

#: samples per second of the waveforms
SAMPLE_RATE = 16_000
#: length of a short window, in seconds.  Windows of 8 seconds and less make Whisper repeat itself
SHORT_WINDOW = 10
#: minimum silence at the end of a short window, in seconds
TAIL = 1
#: number of windows that are decoded together
BATCH_SIZE = 8
#: peak below which a clip counts as silence; Whisper transcribes silence as "you"
SILENCE_PEAK = 1e-3
#: ratio of a text's bytes to its compressed bytes above which the text is a repetition
MAX_COMPRESSION = 2.4


def pack_windows(
    samples: Sequence[int], window: int | None = SHORT_WINDOW, batch_size: int = BATCH_SIZE
) -> tuple[list[list[int]], list[int]]:
    """Group the clips that fit a short window into batches.

    The groups depend on nothing but the lengths and their order.

    Args:
        samples: lengths of the clips, at 16 kHz.
        window: length of the short window in seconds; None if no clip gets one.
        batch_size: maximum number of clips in a batch.

    Returns:
        Indices of the clips of each batch, and indices of the clips that are too long; both rise.

    Raises:
        EepolicyError: `batch_size` is below 1, or `window` is not from 2 to 30.

    Example:
        >>> pack_windows([32000, 32000, 400000, 32000], batch_size=2)
        ([[0, 1], [3]], [2])
    """
    if batch_size < 1:
        raise EepolicyError(f"`batch_size` must be at least 1; got {batch_size}")
    if window is not None and not TAIL < window <= 30:
        raise EepolicyError(f"`window` must be None, or from {TAIL + 1} to 30; got {window}")
    most = -1 if window is None else (window - TAIL) * SAMPLE_RATE
    fitting = [i for i, number in enumerate(samples) if number <= most]
    batches = [fitting[i : i + batch_size] for i in range(0, len(fitting), batch_size)]
    return batches, [i for i, number in enumerate(samples) if number > most]


def is_silent(wave: NDArray[np.float32]) -> bool:
    """Check whether a clip, (samples,), is empty or nowhere louder than `SILENCE_PEAK`."""
    return not wave.size or float(np.abs(wave).max()) < SILENCE_PEAK


def is_repetition(text: str) -> bool:
    """Check whether a transcript repeats itself, by its compression ratio.

    Whisper sometimes repeats a sentence until its maximum length.  OpenAI's implementation uses the
    same rule and limit.

    Example:
        >>> is_repetition("A cat is not able to fly."), is_repetition("A cat can fly. " * 6)
        (False, True)
    """
    encoded = text.encode()
    return len(encoded) > MAX_COMPRESSION * len(zlib.compress(encoded))
