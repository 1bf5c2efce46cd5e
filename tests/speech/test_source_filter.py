"""Pulses, noise and filters, against naive sums and convolutions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eepolicy.speech.mel import HOP, SAMPLE_RATE, _filters, log_mel
from eepolicy.speech.source_filter import (
    FFT,
    PERIOD,
    WARP,
    _noise,
    _warped,
    by_sample,
    filtered,
    noise_at,
    phase_of,
    pulses,
)


def response(cepstrum: np.ndarray, bins: int, minimum_phase: bool) -> np.ndarray:
    """Frequency response of a mel-cepstrum, term by term, (bins,)."""
    values = []
    for omega in np.linspace(0, math.pi, bins):
        # the all-pass filter that warps the frequencies, at this frequency
        unit = np.exp(-1j * omega)
        warped = (unit - WARP) / (1 - WARP * unit)
        terms = sum(c * warped**n for n, c in enumerate(cepstrum))
        values.append(np.exp(terms if minimum_phase else terms.real))
    return np.array(values)


def test_pulses_are_the_sum_of_their_harmonics():
    pitch = torch.tensor([[150.0, 170.0, 260.0, 100.0]])
    phase = phase_of(pitch, torch.tensor([0.3], dtype=torch.float64))[:, :-1]
    expected = []
    for value, turns in zip(by_sample(pitch, HOP)[0], phase[0], strict=True):
        number = SAMPLE_RATE / 2 / float(value)
        waves = [
            min(1, number - k + 1) * math.cos(2 * math.pi * k * float(turns))
            for k in range(1, math.ceil(number) + 1)
        ]
        expected.append(sum(waves) * math.sqrt(2 / number))
    # float32: measured 8e-6 of a largest value of 13
    np.testing.assert_allclose(pulses(pitch, phase)[0].numpy(), expected, atol=1e-3)


@given(st.integers(1, 9), st.integers(0, 99))
def test_samples_are_interpolated(frames, seed):
    values = np.random.default_rng(seed).normal(size=frames)
    expected = np.interp(np.arange(frames * 8) / 8, np.arange(frames), values)
    got = by_sample(torch.from_numpy(values)[None], 8)[0]
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-12)


def test_the_phase_continues_across_parts():
    pitch = torch.rand(1, 30) * 100 + 120
    whole = phase_of(pitch, torch.zeros(1, dtype=torch.float64))
    # the last frame of a part is repeated, so the parts overlap by a frame
    first = phase_of(pitch[:, :11], whole[:, 0])
    second = phase_of(pitch[:, 10:], first[:, 10 * HOP])
    torch.testing.assert_close(second, whole[:, 10 * HOP :], rtol=0, atol=1e-9)


@settings(max_examples=10)
@given(st.integers(0, 999), st.booleans())
def test_a_constant_filter_is_a_convolution(seed, minimum_phase):
    rng = np.random.default_rng(seed)
    cepstrum = rng.normal(size=12) * 0.5 / (1 + np.arange(12))
    source = torch.from_numpy(rng.normal(size=(1, 20 * HOP))).float()
    got = filtered(source, torch.from_numpy(cepstrum).float().expand(1, 20, -1), minimum_phase)
    # the convolution as a product of spectra that are long enough not to wrap around
    size = 1 << 14
    values = response(cepstrum, size // 2 + 1, minimum_phase)
    expected = np.fft.irfft(np.fft.rfft(source[0].numpy(), size) * values, size)[: 20 * HOP]
    # the response decays within FFT samples; measured 2e-5
    np.testing.assert_allclose(got[0].numpy(), expected, atol=1e-3)


def test_a_filter_of_minimum_phase_is_causal():
    source = torch.zeros(1, 10 * HOP)
    source[0, 800] = 1.0
    wave = filtered(source, torch.tensor([0.5, 0.4, -0.2, 0.1]).expand(1, 10, -1), True)
    assert wave[0, :800].abs().max() < 1e-5  # measured 3e-7
    assert wave[0, 800:].abs().max() > 0.5


def test_noise_depends_on_the_position_alone():
    assert torch.equal(noise_at(700, 500), noise_at(0, 5000)[700:1200])
    assert torch.equal(
        noise_at(PERIOD - 3, 6), torch.cat([noise_at(PERIOD - 3, 3), noise_at(0, 3)])
    )
    noise = noise_at(0, PERIOD)
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02
    assert FFT < PERIOD


@pytest.mark.parametrize("minimum_phase", [True, False])
def test_gradients_pass_after_a_first_call_in_inference_mode(minimum_phase):
    for cached in (_warped, _noise):
        cached.cache_clear()
    source, cepstrum = torch.zeros(1, 2 * HOP), torch.zeros(1, 2, 3)
    source[0, 9] = 1
    with torch.inference_mode():
        filtered(source + noise_at(0, 2 * HOP), cepstrum, minimum_phase)
    cepstrum.requires_grad_()
    filtered(source + noise_at(0, 2 * HOP), cepstrum, minimum_phase).square().sum().backward()
    assert cepstrum.grad.abs().max() > 0


def test_gradients_pass_through_log_mels_after_a_first_call_in_inference_mode():
    _filters.cache_clear()
    wave = torch.randn(800, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        log_mel(wave)
    wave.requires_grad_()
    log_mel(wave).sum().backward()
    assert wave.grad.abs().max() > 0
