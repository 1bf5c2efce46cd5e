"""The authors' vocoders and the MOS predictors, on stand-ins with their interfaces."""

from __future__ import annotations

import io
import pickle
import sys
from types import ModuleType

import numpy as np
import pytest
import soundfile
import torch
from conftest import LAYOUT, tiny

from eepolicy import EepolicyError, HookedModel
from eepolicy.speech import mos
from eepolicy.speech.vocoders import GlmVoice, StepVoice

UNITS = torch.tensor([5, 6, 7])


def tone(rate: int) -> np.ndarray:
    """A second at 440 Hz."""
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)


def check(wave: torch.Tensor) -> None:
    assert wave.shape == (16_000,)
    # measured 4e-4, the resampling filter
    np.testing.assert_allclose(wave[400:-400], tone(16_000)[400:-400], atol=2e-3)


def test_the_voice_of_step_audio(monkeypatch, tmp_path):
    class Token2wav:
        def __init__(self, model_dir):
            self.model_dir = model_dir

        def __call__(self, tokens, prompt_wav):
            assert (self.model_dir, tokens) == (str(tmp_path), [5, 6, 7])
            assert prompt_wav.endswith("voice.wav")
            out = io.BytesIO()
            soundfile.write(out, tone(24_000), 24_000, format="WAV")
            return out.getvalue()

    module = ModuleType("token2wav")
    module.Token2wav = Token2wav
    monkeypatch.setitem(sys.modules, "token2wav", module)
    voice = StepVoice(tmp_path, tmp_path / "voice.wav")
    check(voice.decode(UNITS))
    assert voice.decode(UNITS[:0]).shape == (0,)
    assert pickle.loads(pickle.dumps(voice)) == voice  # for a worker, without the authors' model
    assert voice == eval(repr(voice), {"StepVoice": StepVoice, "PosixPath": type(tmp_path)})


def test_the_voice_of_glm(monkeypatch, tmp_path):
    class AudioDecoder:
        def __init__(self, config_path, flow_ckpt_path, hift_ckpt_path, device):
            named = [config_path, flow_ckpt_path, hift_ckpt_path]
            assert [n.rsplit("/", 1)[1] for n in named] == ["config.yaml", "flow.pt", "hift.pt"]
            assert device == "cpu"

        def token2wav(self, token, uuid, prompt_token, prompt_feat, finalize):
            assert token.tolist() == [[5, 6, 7]]
            assert (prompt_token.shape, prompt_feat.shape) == ((1, 0), (1, 0, 80))
            assert finalize
            return torch.from_numpy(tone(22_050))[None], None

    module = ModuleType("flow_inference")
    module.AudioDecoder = AudioDecoder
    monkeypatch.setitem(sys.modules, "flow_inference", module)
    voice = GlmVoice(tmp_path, "cpu")
    check(voice.decode(UNITS))
    assert pickle.loads(pickle.dumps(voice)) == voice


def test_the_error_names_what_to_install(tmp_path):
    with pytest.raises(EepolicyError, match=r"clone https://github\.com/stepfun-ai/Step-Audio2"):
        StepVoice(tmp_path, tmp_path).decode(UNITS)
    with pytest.raises(EepolicyError, match="no module 'flow_inference': clone"):
        GlmVoice(tmp_path).decode(UNITS)


def test_other_mos_predictors(monkeypatch):
    class Model:
        def predict(self, input_path):
            wave, rate = soundfile.read(input_path)
            assert (len(wave), rate) == (16_000, 16_000)
            return 3.25

    utmos, speechmos = ModuleType("utmosv2"), ModuleType("speechmos")
    utmos.create_model = lambda pretrained: Model()
    dnsmos = ModuleType("speechmos.dnsmos")
    dnsmos.run = lambda wave, rate: {"ovrl_mos": float(np.abs(wave).max()), "p808_mos": 9.0}
    speechmos.dnsmos = dnsmos
    for name, module in (("utmosv2", utmos), ("speechmos", speechmos)):
        monkeypatch.setitem(sys.modules, name, module)
    wave = torch.from_numpy(3 * tone(16_000))
    assert mos.RATERS["utmosv2"]().rate(wave) == 3.25
    assert mos.RATERS["dnsmos"]().rate(wave) == 1.0  # samples outside -1..1 are clipped
    for rater in ("utmosv2", "dnsmos"):
        assert np.isnan(mos.RATERS[rater]().rate(wave[:0]))


def test_a_missing_or_unknown_mos_predictor(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "utmosv2", None)
    with pytest.raises(EepolicyError, match=r"UTMOSv2 needs the package utmosv2: .*UTMOSv2\.git"):
        mos.UtmosV2()
    _, err = run("compare", "--mos", "ear", "--out", str(tmp_path / "out"), code=2)
    assert "the MOS predictors are distillmos, dnsmos, utmosv2" in err


def test_a_vocoder_without_a_codebook_cannot_measure_distances():
    class Voice:
        def decode(self, units):
            return torch.zeros(10 * len(units))

    model = HookedModel(tiny("llama"), LAYOUT, vocoder=Voice())
    out = model.generate(torch.arange(6), max_new_tokens=20)
    assert out.audio.shape == (10 * len(out.units),)
    with pytest.raises(EepolicyError, match="a model whose vocoder has a codebook"):
        model.generate(torch.arange(6), "static@3", accept="acoustic:3")
