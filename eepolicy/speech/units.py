"""Speech units of the pocket model: k-means clusters of log-mel patches, and their decoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.io import write_atomically
from eepolicy.speech.mel import HOP, MELS, SAMPLE_RATE, griffin_lim, log_mel

FRAMES = 4  # mel frames in a unit: 40 ms
UNIT_SAMPLES = FRAMES * HOP
UNITS_PER_SECOND = SAMPLE_RATE / UNIT_SAMPLES


def patches(wave: Tensor) -> Tensor:
    """Cut the log-mel spectrum of a waveform into patches of 40 ms.

    Args:
        wave: (samples,) at 16 kHz.

    Returns:
        (units, 320); an incomplete last patch is dropped.
    """
    frames = log_mel(wave)
    whole = len(wave) // UNIT_SAMPLES
    return frames[: whole * FRAMES].reshape(whole, FRAMES * MELS)


@dataclass(frozen=True, eq=False)
class Units:
    """A codebook of speech units.

    Attributes:
        codebook: (units, 320), the log-mel patch of each unit.
    """

    codebook: Tensor

    def __repr__(self) -> str:
        return f"Units({len(self.codebook)} units, {UNITS_PER_SECOND:g} a second)"

    def encode(self, wave: Tensor, chunk: int = 4096) -> Tensor:
        """Return the nearest unit of each 40 ms.

        Args:
            wave: (samples,) at 16 kHz, in -1..1.
            chunk: number of patches that are compared at a time.

        Returns:
            (units,) of int64.

        Raises:
            EepolicyError: the waveform has more than one channel, or is shorter than one unit.
        """
        if wave.ndim != 1:
            raise EepolicyError(
                f"encode() takes one channel, (samples,); got shape {tuple(wave.shape)}"
            )
        if len(wave) < UNIT_SAMPLES:
            raise EepolicyError(f"a unit needs {UNIT_SAMPLES} samples at 16 kHz; got {len(wave)}")
        return self.nearest(patches(wave.float()), chunk)

    def nearest(self, points: Tensor, chunk: int = 4096) -> Tensor:
        """Return the nearest unit of each patch: (patches, 320) -> (patches,)."""
        # |p - c|^2 = |p|^2 - 2 p.c + |c|^2, and |p|^2 is the same for all units
        norms = self.codebook.square().sum(1)
        return torch.cat(
            [(norms - 2 * part @ self.codebook.T).argmin(1) for part in points.split(chunk)]
        )

    def decode(self, units: Tensor) -> Tensor:
        """Decode units into speech, by their centroids and Griffin-Lim.

        Args:
            units: (units,) of integers, smaller than the size of the codebook.

        Returns:
            (units * 640,) at 16 kHz; empty for no units.

        Raises:
            EepolicyError: a unit is not in the codebook.
        """
        if units.numel() == 0:
            return torch.zeros(0)
        if units.min() < 0 or units.max() >= len(self.codebook):
            raise EepolicyError(
                f"units are 0 to {len(self.codebook) - 1}; "
                f"got {int(units.min())} to {int(units.max())}"
            )
        return griffin_lim(self.codebook[units].reshape(-1, MELS))

    def save(self, path: Path) -> None:
        """Write the codebook to a safetensors file, in half precision.

        Raises:
            EepolicyError: the file cannot be written.
        """
        codebook = self.codebook.half().contiguous()
        write_atomically(
            path, lambda part: save_file({"codebook": codebook}, part), codebook.nbytes
        )

    @classmethod
    def load(cls, path: Path) -> Units:
        """Read a file that `save` wrote."""
        return cls(load_file(path)["codebook"].float())
