"""Speech units of the pocket model: k-means clusters of log-mel patches, and their decoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.io import write_atomically
from eepolicy.speech.mel import HOP, MELS, SAMPLE_RATE, griffin_lim, log_mel
from eepolicy.speech.neural_vocoder import (
    AFTER,
    VocoderNetwork,
    load_network,
    pitch_of_frames,
    save_network,
    stream_frames,
    synthesize_frames,
)
from eepolicy.speech.vocoders import check_codebook, check_units
from eepolicy.tensor_files import read_tensors

FRAMES = 4  # mel frames in a unit: 40 ms
UNIT_SAMPLES = FRAMES * HOP
UNITS_PER_SECOND = SAMPLE_RATE / UNIT_SAMPLES
#: file of the neural vocoder, beside the codebook
VOCODER = "vocoder.safetensors"


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
    """A codebook of speech units, and what turns them into sound.

    Attributes:
        codebook: (units, 320), the log-mel patch of each unit.
        network: network of the neural vocoder; None for Griffin-Lim.
    """

    codebook: Tensor
    network: VocoderNetwork | None = None

    def __repr__(self) -> str:
        sound = "Griffin-Lim" if self.network is None else "a neural vocoder"
        return f"Units({len(self.codebook)} units, {UNITS_PER_SECOND:g} a second, by {sound})"

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
        """Decode units into speech, by the neural vocoder or else by Griffin-Lim.

        Args:
            units: (units,) of integers, smaller than the size of the codebook.

        Returns:
            (units * 640,) at 16 kHz; empty for no units.

        Raises:
            EepolicyError: a unit is not in the codebook.
        """
        return self.decode_batch([units])[0]

    def decode_batch(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Decode several rows together; each sounds as it does alone, up to rounding.

        Args:
            rows: (units,) each.

        Returns:
            (units * 640,) each, at 16 kHz.

        Raises:
            EepolicyError: a unit is not in the codebook.
        """
        frames = [self._frames(units) for units in rows]
        spoken = [i for i, row in enumerate(frames) if len(row)]
        waves = [torch.zeros(0)] * len(frames)
        if self.network is None or not spoken:
            sounds = [griffin_lim(frames[i]) for i in spoken]
        else:
            sounds = synthesize_frames(self.network, [frames[i] for i in spoken])
        for i, sound in zip(spoken, sounds, strict=True):
            waves[i] = sound
        return waves

    def stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Decode units while they arrive.

        Args:
            chunks: (units,) each.

        Returns:
            An iterator over pieces of sound, (samples,) at 16 kHz.  Together they are what `decode`
            returns, up to rounding.  The sound of a unit comes `look_ahead` units later.

        Raises:
            EepolicyError: there is no neural vocoder, or a unit is not in the codebook.
        """
        if self.network is None:
            raise EepolicyError(
                "Griffin-Lim needs all units at once: stream with a model that has a neural "
                "vocoder (vocoder.safetensors), or use decode()"
            )
        return stream_frames(self.network, map(self._frames, chunks))

    @property
    def look_ahead(self) -> int:
        """Later units that `stream` needs before it returns the sound of a unit."""
        frames = 0 if self.network is None else self.network.context + AFTER
        return -(-frames // FRAMES)

    def pitch(self, units: Tensor) -> Tensor | None:
        """The pitch with which the neural vocoder speaks units; None without one.

        Args:
            units: (units,) of integers, smaller than the size of the codebook.

        Returns:
            (units, 4) in Hz, a value for each frame of 10 ms; nan where it is unvoiced.

        Raises:
            EepolicyError: a unit is not in the codebook.
        """
        if self.network is None:
            return None
        if units.numel() == 0:
            return torch.zeros(0, FRAMES)
        return pitch_of_frames(self.network, self._frames(units)).reshape(-1, FRAMES)

    def _frames(self, units: Tensor) -> Tensor:
        """Log-mel frames of units: (units,) -> (units * 4, 80)."""
        if units.numel() == 0:
            return torch.zeros(0, MELS)
        check_units(units, len(self.codebook))
        return self.codebook[units].reshape(-1, MELS)

    def save(self, path: str | Path) -> None:
        """Write the codebook to a safetensors file in half precision.

        The network of a neural vocoder goes to `vocoder.safetensors` beside it.

        Raises:
            EepolicyError: a file cannot be written.
        """
        codebook = self.codebook.half().contiguous()
        write_atomically(
            path, lambda part: save_file({"codebook": codebook}, part), codebook.nbytes
        )
        if self.network is not None:
            save_network(self.network, Path(path).with_name(VOCODER))

    @classmethod
    def load(cls, path: str | Path) -> Units:
        """Read what `save` wrote: the codebook, and `vocoder.safetensors` beside it if present."""
        network = Path(path).with_name(VOCODER)
        codebook = read_tensors(path, "a file of speech units", ["codebook"])["codebook"].float()
        check_codebook(codebook, str(path))
        return cls(codebook, load_network(network) if network.is_file() else None)
