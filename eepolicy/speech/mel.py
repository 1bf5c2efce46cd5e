"""Log-mel spectra, and waveforms from them (Griffin and Lim, 1984)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

SAMPLE_RATE = 16_000
HOP = 160  # samples between frames: 10 ms
WINDOW = 640  # samples in a frame: 40 ms
FFT = 1024
MELS = 80
FLOOR = 1e-4  # smallest magnitude; lower ones are raised to it


@lru_cache(maxsize=1)
@torch.inference_mode(False)  # kept beyond the inference mode of its first caller
def _filters() -> tuple[Tensor, Tensor]:
    """The mel filters (mels, bins) and their pseudo-inverse (bins, mels)."""
    bank = mel_filter_bank(
        num_frequency_bins=FFT // 2 + 1,
        num_mel_filters=MELS,
        min_frequency=0.0,
        max_frequency=SAMPLE_RATE / 2,
        sampling_rate=SAMPLE_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    filters = torch.from_numpy(bank).float().T  # (mels, bins)
    return filters, torch.linalg.pinv(filters)


def log_mel(wave: Tensor) -> Tensor:
    """Compute the natural logarithm of the mel magnitudes.

    Args:
        wave: (samples,) at 16 kHz, in -1..1.

    Returns:
        (frames, 80), one frame per 10 ms, at least log(1e-4).
    """
    spectrum = torch.stft(
        wave, FFT, HOP, WINDOW, torch.hann_window(WINDOW), return_complex=True
    ).abs()  # (bins, frames)
    return (_filters()[0] @ spectrum).clamp_min(FLOOR).log().T


def griffin_lim(log_mels: Tensor, iterations: int = 40, momentum: float = 0.99) -> Tensor:
    """Compute a waveform whose mel spectrum is close to the given one.

    Fast Griffin-Lim (Perraudin et al. 2013) estimates the phases: it transforms to the waveform and
    back, repeatedly.  The first phases are random with a fixed seed, so that the same spectrum
    always gives the same waveform.

    Args:
        log_mels: (frames, 80), as `log_mel` returns them.
        iterations: number of transforms to the waveform and back.
        momentum: weight of the last iteration in the next one.

    Returns:
        (frames * 160,) at 16 kHz.
    """
    magnitude = (_filters()[1] @ log_mels.T.exp()).clamp_min(FLOOR)  # (bins, frames)
    length = log_mels.shape[0] * HOP
    # the centred transform has a frame at both ends, one more than there are hops
    magnitude = torch.cat([magnitude, magnitude[:, -1:]], dim=1)
    window = torch.hann_window(WINDOW)
    noise = torch.rand(magnitude.shape, generator=torch.Generator().manual_seed(0))
    phase = torch.polar(torch.ones_like(magnitude), 2 * torch.pi * noise)
    last = torch.zeros_like(phase)
    for _ in range(iterations):
        wave = torch.istft(magnitude * phase, FFT, HOP, WINDOW, window, length=length)
        rebuilt = torch.stft(wave, FFT, HOP, WINDOW, window, return_complex=True)
        phase = rebuilt - (momentum / (1 + momentum)) * last
        phase = phase / phase.abs().clamp_min(1e-12)
        last = rebuilt
    return torch.istft(magnitude * phase, FFT, HOP, WINDOW, window, length=length)
