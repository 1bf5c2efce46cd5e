"""Sound as people pass it, and clear sentences for what is no sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import LAYOUT, tiny

from eepolicy import EepolicyError, HookedModel
from eepolicy.prompts import Affixes
from eepolicy.speech.audio_prompt import AudioPrompt
from eepolicy.speech.waves import as_wave, check_wave


def tone(rate: int = 16_000) -> np.ndarray:
    """Half a second at 440 Hz."""
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(rate // 2) / rate)).astype(np.float32)


HIGH = tone(48_000)
PAIR = (torch.arange(3), torch.arange(4))  # two prompts
PCM = (tone() * 32_768).round().astype(np.int16)


@pytest.mark.parametrize(
    "value",
    [
        tone(),
        tone().astype(np.float64),
        torch.from_numpy(tone()),
        (tone(), 16_000),
        (torch.from_numpy(HIGH), 48_000),
        (HIGH, np.int64(48_000)),
        {"array": HIGH, "sampling_rate": 48_000, "path": None},
        {"raw": HIGH, "sampling_rate": 48_000},
        PCM,
        torch.from_numpy(PCM),
        (PCM, 16_000),
    ],
)
def test_sound_becomes_a_waveform(value):
    wave = as_wave(value)
    assert (wave.shape, wave.dtype) == ((8000,), torch.float32)
    # measured 4e-4, the filter and 16 bits
    np.testing.assert_allclose(wave[400:-400], tone()[400:-400], atol=2e-3)


@pytest.mark.parametrize(
    "value",
    ["Who?", Path("a.wav"), torch.arange(5), [1, 2], np.arange(5), (3, 4), {"input_ids": 1}, PAIR],
)
def test_prompts_without_sound_are_unchanged(value):
    assert as_wave(value) is value


def test_invalid_sound_is_refused():
    with pytest.raises(EepolicyError, match=r"one channel, \(samples,\); got \(2, 90\): take a ch"):
        as_wave(np.zeros((2, 90)))
    for rate in (0, 44.1, True):
        with pytest.raises(EepolicyError, match="a sampling rate is a number of samples a second"):
            as_wave((tone(), rate))
    for bad, match in ((np.nan, "not finite"), (32_767.0, "in -1..1; got 32767: divide 16-bit")):
        with pytest.raises(EepolicyError, match=match):
            check_wave(torch.tensor([0.0, bad]))


def test_all_forms_of_sound_give_the_same_reply(tmp_path, monkeypatch):
    class Encoder:
        def encode(self, wave):
            parts = wave.unfold(0, 1000, 1000)
            return [parts.mean(1, keepdim=True) + torch.linspace(0, 1, 32)]

    model = HookedModel(tiny("llama"), LAYOUT, audio_encoder=AudioPrompt(Encoder(), 7, 8, 9))
    prompts = type(model.prompt_format)
    monkeypatch.setattr(prompts, "affixes", Affixes("", "", ""), raising=False)
    monkeypatch.setattr(prompts, "encode_affixes", lambda *_, **__: ([1], [2]))
    monkeypatch.setattr(
        HookedModel, "prompt_format", property(lambda m: prompts(m.vocab_size, m.layout, None, 1))
    )
    file = tmp_path / "a.wav"
    soundfile.write(file, tone(), 16_000, subtype="FLOAT")
    expected = model.generate(file, max_new_tokens=8).tokens.tolist()
    for value in (tone(), (tone(), 16_000), {"array": tone(), "sampling_rate": 16_000}):
        assert model.generate(value, max_new_tokens=8).tokens.tolist() == expected
    both = model.generate([(tone(), 16_000), file], max_new_tokens=8)
    assert [out.tokens.tolist() for out in both] == [expected] * 2
    with pytest.raises(EepolicyError, match="not finite"):
        model.generate(torch.full((1600,), torch.nan))


def test_a_sound_file_name_in_text_gives_a_warning():
    model = HookedModel(tiny("llama"), LAYOUT)
    with (
        pytest.warns(UserWarning, match=r"taken as a question in text; .* pathlib\.Path\('q\.wav'"),
        pytest.raises(EepolicyError, match="a model with a tokenizer"),
    ):
        model.generate("q.wav")
    with pytest.raises(EepolicyError, match=r"one channel, \(samples,\); got \(2, 900\)"):
        model.generate(torch.zeros(2, 900))
