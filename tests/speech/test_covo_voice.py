"""The vocoder of Covo-Audio-Chat, on a stand-in with the interface of its authors' package."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from eepolicy import EepolicyError
from eepolicy.heads.fingerprint import digest
from eepolicy.speech.covo_voice import VOICE, CovoVoice
from eepolicy.speech.vocoders import decode_at

UNITS = torch.tensor([5, 6, 16_383])


@pytest.fixture
def authors(monkeypatch, tmp_path):
    """The package `token2wav` of the authors, whose wave is its units and noise."""
    module = ModuleType("token2wav.decode")
    module.__file__ = str(tmp_path / "clone" / "token2wav" / "decode.py")
    module.calls = []

    def init_model(args, decode_device):
        print("load global mean and var for latents")
        module.calls.append((args.decode_model_config, args.decode_load_path, decode_device))
        torch.rand(3)
        return "model", "config"

    def decode(llm_tokens, prompt_dir, model, config):
        assert (model, config) == ("model", "config")
        module.voice = prompt_dir
        units = np.repeat(np.asarray(llm_tokens, dtype=np.float32) / 16_384, 960)
        return {"wav": units + 0.1 * torch.randn(len(units)).numpy(), "sample_rate": 24_000}

    module.init_model, module.decode = init_model, decode
    monkeypatch.setitem(sys.modules, "token2wav", ModuleType("token2wav"))
    monkeypatch.setitem(sys.modules, "token2wav.decode", module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return module


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "checkpoint" / "token2wav"
    folder.mkdir(parents=True)
    for name in ("model.pt", "global_mean_var.npy"):
        (folder / name).touch()
    return folder


def test_decoding_uses_the_same_noise_each_time(authors, folder, capsys):
    voice = CovoVoice(folder, device="cpu")
    state = torch.random.get_rng_state()
    wave = voice.decode(UNITS)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(voice.decode(UNITS), wave)  # loading drew numbers before the first one
    assert wave.shape == (3 * 960,)  # 40 ms a unit
    levels = wave.reshape(3, 960).mean(1)
    np.testing.assert_allclose(levels, UNITS / 16_384, atol=0.02)
    assert decode_at(voice, UNITS).shape == (3 * 640,)
    clone = Path(authors.__file__).parent
    assert authors.voice == str(clone / "prompt")
    assert authors.calls == [(str(clone / "config.json"), str(folder / "model.pt"), "cpu")]
    assert capsys.readouterr().out == ""
    again = pickle.loads(pickle.dumps(voice))  # for a worker, without the authors' model
    assert again == voice
    assert torch.equal(again.decode(UNITS), wave)
    assert voice.decode(UNITS[:0]).shape == (0,)
    assert digest(CovoVoice(folder)) == digest(voice)  # a run can continue on another GPU


def test_another_voice(authors, folder, tmp_path):
    other = tmp_path / "voice"
    other.mkdir()
    voice = CovoVoice(folder, other, "cpu")
    with pytest.raises(
        EepolicyError, match=r"voice lacks prompt_token\.npy, prompt_latent\.npy, sp"
    ):
        voice.decode(UNITS)
    for name in VOICE:
        (other / name).touch()
    voice.decode(UNITS)
    assert authors.voice == str(other)


def test_wrong_units_and_missing_requirements_are_named(authors, folder, monkeypatch):
    voice = CovoVoice(folder, device="cpu")
    with pytest.raises(EepolicyError, match="units are 0 to 16383; got 5 to 16384"):
        voice.decode(UNITS + (UNITS == 16_383))
    with pytest.raises(
        EepolicyError, match=r"checkpoint lacks model\.pt, global_mean_var\.npy: give"
    ):
        CovoVoice(folder.parent, device="cpu").decode(UNITS)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EepolicyError, match="asks for a CUDA device when it is made"):
        voice.check()
    monkeypatch.delitem(sys.modules, "token2wav.decode")
    with pytest.raises(EepolicyError, match=r"'token2wav\.decode'.*: clone .*Covo-Audio, .*json5"):
        voice.decode(UNITS)
