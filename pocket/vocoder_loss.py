"""The spectral loss of the vocoder."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

from eepolicy.speech.mel import SAMPLE_RATE

FFTS = (256, 512, 1024, 2048)  # samples in a frame
FLOOR = 1e-3  # magnitude that is added before the logarithm


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # kept beyond the inference mode of its first caller
def _window(fft: int) -> Tensor:
    return torch.hann_window(fft)


@lru_cache(maxsize=1)
@torch.inference_mode(False)  # kept beyond the inference mode of its first caller
def _mel_filters() -> Tensor:
    """Mel filters of the frames of 1,024 samples, (bins, 80)."""
    bank = mel_filter_bank(513, 80, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, "slaney", "slaney")
    return torch.from_numpy(bank).float()


def _magnitude(wave: Tensor, fft: int) -> Tensor:
    """(rows, samples) -> (rows, bins, frames)."""
    return torch.stft(wave, fft, fft // 4, window=_window(fft), return_complex=True).abs()


def spectral_loss(wave: Tensor, true: Tensor) -> Tensor:
    """Distance of log magnitudes at several resolutions, and of log-mel values.

    Multi-resolution spectral loss of Yamamoto et al. 2019 (arXiv 1910.11480), L1 of logarithms.

    Args:
        wave: (rows, samples), synthesized.
        true: (rows, samples), recorded.
    """
    loss = wave.new_zeros(())
    for fft in FFTS:
        ours, theirs = _magnitude(wave, fft), _magnitude(true, fft)
        loss = loss + (torch.log(ours + FLOOR) - torch.log(theirs + FLOOR)).abs().mean()
        if fft == 1024:
            mels = [(x.transpose(1, 2) @ _mel_filters() + FLOOR).log() for x in (ours, theirs)]
            loss = loss + 2 * (mels[0] - mels[1]).abs().mean()
    return loss
