"""Units and mel spectra: round trips and errors."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eepolicy import EepolicyError
from eepolicy.speech.audio import write_audio
from eepolicy.speech.mel import HOP, SAMPLE_RATE, griffin_lim, log_mel
from eepolicy.speech.units import UNIT_SAMPLES, Units, patches


def vowel(seconds: float = 0.8, pitch: float = 150.0) -> torch.Tensor:
    """Harmonics with a moving formant: something like speech, (samples,)."""
    t = torch.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    formant = 500 + 800 * t / seconds
    wave = sum(
        torch.exp(-(((k * pitch - formant) / 300) ** 2)) * torch.sin(2 * torch.pi * k * pitch * t)
        for k in range(1, 20)
    )
    return 0.3 * wave / wave.abs().max()


@pytest.fixture(scope="module")
def units() -> Units:
    """A codebook of patches of vowels at some pitches."""
    return Units(torch.cat([patches(vowel(pitch=p)) for p in (120.0, 150.0, 190.0)]))


def test_log_mel_is_a_naive_transform():
    """One frame against a transform written out in numpy."""
    from transformers.audio_utils import mel_filter_bank

    wave = vowel().numpy().astype(np.float64)
    filters = mel_filter_bank(513, 80, 0, 8000, 16000, norm="slaney", mel_scale="slaney")
    frame = 20
    window = np.zeros(1024)
    window[192:832] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(640) / 640)
    centre = frame * HOP
    spectrum = np.abs(np.fft.rfft(wave[centre - 512 : centre + 512] * window))
    expected = np.log(np.maximum(filters.T @ spectrum, 1e-4))
    # float32 transform against float64: measured 1.2e-5 where it is above the floor
    np.testing.assert_allclose(log_mel(vowel())[frame].numpy(), expected, atol=1e-3)


def test_encode_then_decode_keeps_length_and_sound(units):
    wave = vowel()
    codes = units.encode(wave)
    spoken = units.decode(codes)
    assert len(codes) == len(wave) // UNIT_SAMPLES
    assert len(spoken) == len(codes) * UNIT_SAMPLES
    before, after = log_mel(wave[: len(spoken)]), log_mel(spoken)
    loud = before > before.max() - 4
    # the codebook contains this vowel, so the error is that of Griffin-Lim: measured 0.12
    assert (before - after)[loud].abs().mean() < 0.3
    assert torch.equal(units.decode(codes), spoken)  # the same units always sound the same


def test_units_survive_a_round_trip_through_sound(units):
    codes = units.encode(vowel())
    again = units.encode(units.decode(codes))
    # measured: 0.9 of the units come back, the others are neighbours in a steady vowel
    assert (codes == again).float().mean() > 0.6


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.integers(1, 7))
def test_nearest_is_the_nearest(seed, chunk):
    rng = torch.Generator().manual_seed(seed)
    codebook, points = torch.randn(9, 320, generator=rng), torch.randn(13, 320, generator=rng)
    expected = torch.cdist(points, codebook).argmin(1)
    assert torch.equal(Units(codebook).nearest(points, chunk), expected)


def test_codebook_round_trips(units, tmp_path):
    units.save(tmp_path / "units.safetensors")
    again = Units.load(tmp_path / "units.safetensors")
    # half precision has 11 bits: log-mels of up to 10 are exact to 0.004
    torch.testing.assert_close(again.codebook, units.codebook, rtol=0, atol=4e-3)


def test_griffin_lim_is_finite_on_silence():
    assert torch.isfinite(griffin_lim(torch.full((8, 80), -9.2))).all()


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_written_sound_is_read_again(suffix, tmp_path):
    """Of any type, and longer than the stack: Vorbis would end the process at once."""
    wave = 0.5 * torch.sin(torch.arange(3_000_000) / 20)
    file = tmp_path / f"a{suffix}"
    write_audio(file, wave.bfloat16().requires_grad_(), 48_000)
    read, rate = soundfile.read(file)
    assert (len(read), rate) == (len(wave), 48_000)
    # measured 2e-3 for bfloat16 and 16 bits, and 0.03 for Vorbis
    np.testing.assert_allclose(read, wave, rtol=0, atol=5e-3 if suffix != ".ogg" else 0.06)


def test_wrong_input_is_refused(units):
    with pytest.raises(EepolicyError, match=r"one channel, \(samples,\); got shape \(2, 1000\)"):
        units.encode(torch.zeros(2, 1000))
    with pytest.raises(EepolicyError, match="a unit needs 640 samples at 16 kHz; got 10"):
        units.encode(torch.zeros(10))
    with pytest.raises(EepolicyError, match="units are 0 to"):
        units.decode(torch.tensor([0, 10_000]))
    assert len(units.decode(torch.tensor([], dtype=torch.long))) == 0


def test_importing_the_package_does_not_import_scipy_signal():
    """It takes 0.5 s, and only resampling needs it."""
    code = "import sys, eepolicy; print('scipy.signal' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
