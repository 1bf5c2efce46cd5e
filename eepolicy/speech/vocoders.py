"""Vocoders turn speech units into waveforms: the protocol, and what a vocoder can have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.speech.audio import resampled
from eepolicy.speech.mel import SAMPLE_RATE


@runtime_checkable
class Vocoder(Protocol):
    """Decodes units into a waveform.

    A vocoder whose sound is not at 16 kHz has an attribute `sampling_rate`, in samples per second.

    A vocoder can also have a `codebook`, (units, features), with acoustic features of each unit.
    The acceptance rule `acoustic` and acoustic distances need it.
    """

    def decode(self, units: Tensor) -> Tensor:
        """Decode units (units,), counted from 0, into (samples,); empty for none."""
        ...


@runtime_checkable
class StreamingVocoder(Vocoder, Protocol):
    """A vocoder that can also decode units while they arrive.

    An attribute `stream_chunk` is the number of units that it gets at once; without it, 8.
    """

    def stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Decode chunks of units, (units,) each, into pieces (samples,)."""
        ...


def codebook_of(vocoder: Vocoder | None) -> Tensor | None:
    """Return the codebook of a vocoder, (units, features), or None if it has none."""
    return getattr(vocoder, "codebook", None)


def required_vocoder(vocoder: Vocoder | None) -> Vocoder:
    """Return the vocoder of a model.

    Raises:
        EepolicyError: the model has none.
    """
    if vocoder is None:
        raise EepolicyError("the model has no vocoder: pass one to HookedModel(vocoder=...)")
    return vocoder


def sampling_rate_of(vocoder: Vocoder | None) -> int:
    """Samples per second of the sound of a vocoder; 16,000 unless it says otherwise."""
    return int(getattr(vocoder, "sampling_rate", SAMPLE_RATE))


def check_units(units: Tensor, num_codes: int) -> None:
    """Refuse units that are not in a codebook.

    Args:
        units: (units,) of integers.
        num_codes: number of units in the codebook.

    Raises:
        EepolicyError: with the smallest and the largest unit.
    """
    if len(units) and (units.min() < 0 or units.max() >= num_codes):
        raise EepolicyError(
            f"units are 0 to {num_codes - 1}; got {int(units.min())} to {int(units.max())}"
        )


def check_codebook(codebook: Tensor | None, what: str) -> None:
    """Refuse a codebook that is not (units, features) of finite numbers.

    Args:
        codebook: features of each unit; None is right.
        what: what the codebook belongs to, for the message.

    Raises:
        EepolicyError: with the shape, or that a number is not finite.
    """
    if codebook is None:
        return
    if codebook.ndim != 2 or not codebook.numel() or not codebook.is_floating_point():
        raise EepolicyError(
            f"{what}: expected a codebook (units, features) of real numbers; got "
            f"{tuple(codebook.shape)} of {codebook.dtype}"
        )
    if not bool(codebook.isfinite().all()):
        raise EepolicyError(f"{what}: a number in the codebook is nan or infinite")


def decode_at(vocoder: Vocoder, units: Tensor, rate: int = SAMPLE_RATE) -> Tensor:
    """Decode units (units,) into (samples,) at a sampling rate.

    Args:
        vocoder: the vocoder.
        units: speech units.
        rate: samples per second; by default 16,000, which speech recognition and ratings need.
    """
    return resampled(vocoder.decode(units), sampling_rate_of(vocoder), rate)
