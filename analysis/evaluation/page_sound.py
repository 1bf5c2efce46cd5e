"""Sound of the report page: waveforms, and speech as data URLs."""

from __future__ import annotations

import base64
import hashlib
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from eepolicy.errors import EepolicyError
from eepolicy.io import make_folder, write_bytes

#: bars of a waveform, and the height of the loudest one
BARS, HEIGHT = 96, 35
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
#: longest sound that the page reads, in samples: ten minutes at 48 kHz
MAX_SAMPLES = 600 * 48_000


@dataclass(frozen=True)
class Sound:
    """A sound file of a reply.

    Attributes:
        file: address relative to the page.
        digest: digest of the samples: files of identical replies have the same one.
        wave: loudness over time as base-36 digits, see `waveform`.
        seconds: duration.
        samples: (samples,) or (samples, channels), int16.
        rate: samples per second.
    """

    file: str
    digest: str
    wave: str
    seconds: float
    samples: NDArray[Any] = field(repr=False)
    rate: int


def read_sound(folder: Path, name: str) -> Sound | None:
    """Read the sound of a reply from `audio/` of a run folder.

    The folder may come from elsewhere.  A link that leads out of the folder is not followed, since
    the page would contain a file of this machine.

    Args:
        folder: run folder, which contains the page.
        name: name of the file.

    Returns:
        The sound; None if there is no such file, if it lies outside the folder, or if it cannot
        be read.
    """
    file = folder / "audio" / name
    try:
        if not file.resolve(strict=True).is_relative_to(folder.resolve()):
            return None
        if not 0 < soundfile.info(file).frames <= MAX_SAMPLES:
            return None
        samples, rate = soundfile.read(file, dtype="int16")
    except (OSError, RuntimeError):  # soundfile's errors are RuntimeErrors
        return None
    digest = hashlib.sha256(samples.tobytes()).hexdigest()[:16]
    wave = waveform(samples)
    return Sound(f"audio/{name}", digest, wave, len(samples) / rate, samples, rate)


def waveform(samples: NDArray[Any]) -> str:
    """Compute the loudness over time for the page to draw.

    Args:
        samples: (samples,) or (samples, channels).

    Returns:
        A base-36 digit per bar, `BARS` of them or one per sample: the largest magnitude in the
        bar, relative to the loudest sample.

    Examples:
        >>> import numpy as np
        >>> from eepolicy.analysis.evaluation.page_sound import waveform
        >>> waveform(np.array([0, 100, -200, 0]))
        '0hz0'
    """
    mono = np.abs(samples.astype(np.float64)).reshape(len(samples), -1).max(1)
    starts = np.linspace(0, len(mono), min(BARS, len(mono)), endpoint=False).astype(int)
    peaks = np.maximum.reduceat(mono, starts)
    levels = np.floor(HEIGHT * peaks / max(peaks.max(), 1))
    return "".join(DIGITS[int(level)] for level in levels)


def data_url(sound: Sound, cache: Path) -> str:
    """Encode a sound as a data URL.

    MP3 is about a sixth of FLAC, and every browser plays it.  A libsndfile without MP3 gives FLAC.
    Encoding takes longer than everything else of the page, so that files are kept in `cache`.

    Args:
        sound: the sound.
        cache: folder for encoded files.
    """
    kind, media_type = ("MP3", "mpeg") if "MP3" in soundfile.available_formats() else ("FLAC",) * 2
    encoded = _encoded(sound, cache / f"{sound.digest}.{kind.lower()}", kind)
    return f"data:audio/{media_type.lower()};base64,{base64.b64encode(encoded).decode()}"


def _encoded(sound: Sound, file: Path, kind: str) -> bytes:
    """The encoded sound, from the cache if it is there."""
    linked = file.is_symlink() or file.parent.is_symlink()
    if file.is_file() and not linked:
        return file.read_bytes()
    stream = BytesIO()
    soundfile.write(stream, sound.samples, sound.rate, format=kind)
    if not linked:
        with suppress(OSError, EepolicyError):  # the page does not need the cache
            make_folder(file.parent)
            write_bytes(file, stream.getvalue())
    return stream.getvalue()
