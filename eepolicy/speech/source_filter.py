"""Speech from a source and a filter: pulses and noise through mel-cepstral filters.

The classical model of speech synthesis (Fant 1960), as HTS uses it (Tokuda et al. 1995, "Speech
parameter generation from HMM using dynamic features"): a pulse train with the pitch of the voice
and white noise each pass a filter that changes over time.  All functions are differentiable.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from eepolicy.speech.mel import HOP, SAMPLE_RATE

STEP = HOP // 2  # samples between two filters: 5 ms
WINDOW = 4 * STEP  # samples that one filter sees
FFT = 1024  # a filter's response of up to FFT - WINDOW samples fits
WARP = 0.42  # warping of the frequency axis that is close to the mel scale at 16 kHz
PERIOD = 1 << 16  # samples after which the noise repeats
MAX_LOG = 6.0  # largest logarithm of a filter's gain


class SpeechParameters(NamedTuple):
    """Parameters of speech, one frame per 10 ms.

    Attributes:
        pitch: (rows, frames), pitch in Hz; also where the frame is unvoiced.
        voiced: (rows, frames), share of the pulses in 0..1.
        pulse_filter: (rows, frames, order), mel-cepstrum of the pulses' filter.
        noise_filter: (rows, frames, order), mel-cepstrum of the noise's filter.
    """

    pitch: Tensor
    voiced: Tensor
    pulse_filter: Tensor
    noise_filter: Tensor

    def cut(self, start: int, stop: int) -> SpeechParameters:
        """Return the frames from `start` to `stop`."""
        return SpeechParameters(*(part[:, start:stop] for part in self))


@lru_cache(maxsize=4)
@torch.inference_mode(False)  # kept beyond the inference mode of its first caller
def _warped(order: int) -> tuple[Tensor, Tensor]:
    """Cosines and negative sines of the warped frequencies: two of (order, bins)."""
    omega = torch.linspace(0, math.pi, FFT // 2 + 1, dtype=torch.float64)
    warped = omega + 2 * torch.atan(WARP * omega.sin() / (1 - WARP * omega.cos()))
    angles = torch.arange(order, dtype=torch.float64)[:, None] * warped
    return angles.cos().float(), -angles.sin().float()


@lru_cache(maxsize=1)
@torch.inference_mode(False)  # kept beyond the inference mode of its first caller
def _noise() -> Tensor:
    """White noise, (PERIOD,); a fixed seed makes synthesis repeatable."""
    return torch.randn(PERIOD, generator=torch.Generator().manual_seed(0))


def noise_at(start: int, samples: int) -> Tensor:
    """Return white noise (samples,) that depends on the position of each sample alone."""
    return _noise()[torch.arange(start, start + samples) % PERIOD]


def by_sample(frames: Tensor, factor: int) -> Tensor:
    """Interpolate linearly and repeat the end: (rows, frames) -> (rows, frames * factor)."""
    after = torch.cat([frames[:, 1:], frames[:, -1:]], dim=1)
    share = torch.arange(factor, dtype=frames.dtype) / factor
    return (frames[..., None] + (after - frames)[..., None] * share).flatten(1)


def phase_of(pitch: Tensor, start: Tensor) -> Tensor:
    """Return the phase of the pulses at each sample, in periods.

    Args:
        pitch: (rows, frames) in Hz.
        start: (rows,) of float64, phase of the first sample.

    Returns:
        (rows, frames * 160 + 1) of float64; the last column is the phase of the next sample.
    """
    advance = by_sample(pitch.double(), HOP) / SAMPLE_RATE
    return start[:, None] + F.pad(advance.cumsum(1), (1, 0))


def pulses(pitch: Tensor, phase: Tensor) -> Tensor:
    """Return a band-limited pulse train of about unit power.

    It is the sum of the cosines of the harmonics below half the sampling rate, in closed form (the
    Dirichlet kernel).  The next harmonic fades in, so that the pulses are continuous in the pitch.

    Args:
        pitch: (rows, frames) in Hz.
        phase: (rows, frames * 160) of float64, in periods.

    Returns:
        (rows, frames * 160) of float32.
    """
    number = (SAMPLE_RATE / 2 / by_sample(pitch, HOP)).clamp_min(1)  # of harmonics, with fraction
    whole = number.floor()
    offset = (phase - phase.round()).float()  # in periods, -0.5..0.5
    sine = (math.pi * offset).sin()
    at_peak = offset.abs() < 1e-5
    ratio = ((2 * whole + 1) * math.pi * offset).sin() / torch.where(at_peak, 1, sine)
    kernel = torch.where(at_peak, whole, (ratio - 1) / 2)
    fading = (number - whole) * (2 * math.pi * (whole + 1) * offset).cos()
    return (kernel + fading) * (2 / number).sqrt()


def _by_step(cepstrum: Tensor) -> Tensor:
    """(rows, frames, order) -> (rows, 2 * frames + 3, order): a filter for each 5 ms.

    There is one filter more before the first sample and two after the last one, because windows
    overlap.
    """
    after = torch.cat([cepstrum[:, 1:], cepstrum[:, -1:]], dim=1)
    steps = torch.stack([cepstrum, (cepstrum + after) / 2], dim=2).flatten(1, 2)
    return torch.cat([steps[:, :1], steps, steps[:, -1:], steps[:, -1:]], dim=1)


def filtered(source: Tensor, cepstrum: Tensor, minimum_phase: bool) -> Tensor:
    """Pass a signal through a filter that changes over time, by overlap-add.

    Args:
        source: (rows, frames * 160).
        cepstrum: (rows, frames, order), mel-cepstrum of the filter.
        minimum_phase: whether the filter has minimum phase, as a mel-log spectral approximation
            filter has; otherwise it has zero phase.

    Returns:
        (rows, frames * 160).
    """
    samples = source.shape[1]
    window = torch.hann_window(WINDOW) / 2  # four windows overlap; they add up to 2
    pieces = F.pad(source, (3 * STEP, 3 * STEP)).unfold(1, WINDOW, STEP) * window
    cosines, sines = _warped(cepstrum.shape[2])
    steps = _by_step(cepstrum)  # (rows, steps, order)
    gain = (steps @ cosines).clamp_max(MAX_LOG).exp()
    if minimum_phase:
        response = torch.polar(gain, steps @ sines)
    else:
        response = torch.complex(gain, torch.zeros_like(gain))
    spectrum = torch.fft.rfft(pieces, FFT) * response
    convolved = torch.fft.irfft(spectrum, FFT)  # (rows, steps, FFT)
    if not minimum_phase:  # half of the response is before its centre
        convolved = convolved.roll(FFT // 4, dims=2)
    return _overlap_add(convolved, samples, 3 * STEP + (0 if minimum_phase else FFT // 4))


def _overlap_add(pieces: Tensor, samples: int, skip: int) -> Tensor:
    """Add pieces (rows, steps, FFT) that begin `STEP` apart; return `samples` after `skip`."""
    length = (pieces.shape[1] - 1) * STEP + FFT
    added = F.fold(
        pieces.transpose(1, 2), output_size=(1, length), kernel_size=(1, FFT), stride=(1, STEP)
    )
    return added[:, 0, 0, skip : skip + samples]


def synthesize(
    parameters: SpeechParameters, phase: Tensor, noise: Tensor, inside: Tensor | None = None
) -> Tensor:
    """Compute speech from its parameters.

    Args:
        parameters: parameters of `frames` frames.
        phase: (rows, frames * 160) of float64, from `phase_of`.
        noise: (rows, frames * 160), white noise of unit power.
        inside: (rows, frames * 160), 1 where a sample belongs to the row; default: everywhere.

    Returns:
        (rows, frames * 160) at 16 kHz.
    """
    source = pulses(parameters.pitch, phase) * by_sample(parameters.voiced, HOP)
    if inside is not None:
        source, noise = source * inside, noise * inside
    voice = filtered(source, parameters.pulse_filter, minimum_phase=True)
    return voice + filtered(noise, parameters.noise_filter, minimum_phase=False)
