"""The training of the vocoder: pitch, parts of clips, losses, and a resumed run."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from eepolicy.speech.mel import HOP, SAMPLE_RATE
from eepolicy.speech.units import FRAMES, Units
from pocket import vocoder
from pocket.vocoder import Training
from pocket.vocoder_data import CONTEXT, PART, Clip, clips_of, draw, pitch_of
from pocket.vocoder_loss import spectral_loss


def voice(pitch: float, seconds: float) -> np.ndarray:
    """Harmonics of one pitch, (samples,) of int16."""
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    wave = sum(np.cos(2 * np.pi * k * pitch * time) / k for k in range(1, 20))
    return (wave / np.abs(wave).max() * 9000).astype(np.int16)


@pytest.fixture(scope="module")
def units() -> Units:
    torch.manual_seed(0)
    return Units(torch.randn(40, 320) * 2 - 5)


@pytest.fixture(scope="module")
def clips(units) -> list[Clip]:
    noise = np.random.default_rng(0).integers(-300, 300, size=50_000, dtype=np.int16)
    waves = {"a": voice(180, 2.5), "b": voice(230, 0.9)}  # noise makes all positions differ
    waves = {name: wave + noise[: len(wave)] for name, wave in waves.items()}
    return clips_of(waves, units, disable=True)


@pytest.mark.parametrize("hertz", [140.0, 220.0])
def test_the_pitch_of_harmonics_is_found(hertz):
    pitch, voiced = pitch_of(voice(hertz, 1.0))
    assert len(pitch) == 100
    assert voiced[5:-5].all()
    np.testing.assert_allclose(pitch[5:-5], hertz, rtol=0.01)


def test_noise_has_no_pitch():
    noise = np.random.default_rng(0).normal(size=16_000) * 3000
    pitch, voiced = pitch_of(noise.astype(np.int16))
    assert voiced.mean() < 0.2
    assert np.isfinite(pitch).all()


def test_drawn_parts_are_contiguous_parts_of_a_clip(units, clips):
    batch = draw(clips, units, 20, np.random.default_rng(0))
    assert batch.wave.shape == (20, PART * HOP)
    assert batch.log_mel.shape == (20, PART, 80)
    for wave, log_mel, mask in zip(batch.wave, batch.log_mel, batch.mask, strict=True):
        inside = mask.bool()
        assert not wave.reshape(PART, HOP)[~inside].any()
        rows = [as_clip(wave[inside.repeat_interleave(HOP)], clip) for clip in clips]
        # both grids of an answer have this sound, and one of them these units
        assert any(
            torch.equal(log_mel[inside], frames_of(units, clip)[start : start + int(mask.sum())])
            for clip, start in filter(None, rows)
        )
    assert batch.mask.mean() < 1  # some parts reach beyond their clip


def frames_of(units: Units, clip: Clip) -> torch.Tensor:
    """Log-mel frames of a clip's units: (frames, 80)."""
    return units.codebook[torch.from_numpy(clip.units.astype(int))].reshape(-1, 80)


def as_clip(wave: torch.Tensor, clip: Clip) -> tuple[Clip, int] | None:
    """The clip and its frame at which a wave starts, by the wave's samples alone."""
    whole = torch.from_numpy(clip.samples / 32767).float()
    for start in range(0, len(whole) - len(wave) + 1, HOP):
        if torch.allclose(whole[start : start + len(wave)], wave, atol=1e-6):
            return clip, start // HOP
    return None


def test_the_second_grid_is_two_frames_later(clips):
    first, second = clips[0], clips[1]
    shift = FRAMES // 2
    length = min(len(first.samples) - shift * HOP, len(second.samples))
    assert np.array_equal(first.samples[shift * HOP :][:length], second.samples[:length])


def test_the_loss_is_zero_on_the_recording_and_grows_with_noise():
    wave = torch.from_numpy(voice(180, 1.0) / 32767).float()[None]
    noise = torch.randn(wave.shape, generator=torch.Generator().manual_seed(0))
    losses = [float(spectral_loss(wave + share * noise, wave)) for share in (0, 0.01, 0.1)]
    assert losses[0] == 0
    assert losses[0] < losses[1] < losses[2]


def test_training_learns_and_goes_on_where_it_stopped(units, clips, monkeypatch):
    monkeypatch.setattr(vocoder, "RATE", 3e-3)  # seven steps are few

    def steps(training: Training, number: int) -> list[float]:
        losses = []
        for _ in range(number):
            generator = np.random.default_rng(training.step)
            batch = draw(clips, units, 2, generator)
            losses.append(training.run(batch, generator)["spectral"])
        return losses

    whole = Training(7)
    losses = steps(whole, 7)
    assert losses[-1] < 0.9 * losses[0]
    assert whole.network.context <= CONTEXT
    first = Training(7)
    assert steps(first, 2) == losses[:2]
    state = copy.deepcopy(first.state())
    second = Training(7)
    second.load(state)
    assert steps(second, 2) == losses[2:4]
