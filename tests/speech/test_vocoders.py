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
from torch import nn

from eepolicy import EepolicyError, HookedModel
from eepolicy.heads.fingerprint import digest
from eepolicy.speech import mos
from eepolicy.speech.authors_vocoders import GlmVoice, StepVoice
from eepolicy.speech.vocoders import decode_at, sampling_rate_of

UNITS = torch.tensor([5, 6, 7])


def tone(rate: int) -> np.ndarray:
    """A second at 440 Hz."""
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)


def install(monkeypatch, name: str, **members: object) -> ModuleType:
    """Install a stand-in for a module."""
    module = ModuleType(name)
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)
    return module


class Token2wav:
    """The authors' class: files by torchaudio, caches of streams in the object."""

    def __init__(self, model_dir):
        self.model_dir, self.stream_cache, self.hift_cache_dict = model_dir, None, {}
        self.calls = []

    def __call__(self, tokens, prompt_wav):
        torchaudio = sys.modules["torchaudio"]
        voice, rate = torchaudio.load(prompt_wav, backend="soundfile")
        assert (voice.shape, rate) == ((1, 8000), 8000)
        wave = torch.from_numpy(tone(24_000)).float() + 1e-3 * torch.rand(24_000)
        out = io.BytesIO()
        torchaudio.save(out, wave[None], sample_rate=24_000, format="wav")
        return out.getvalue()

    def set_stream_cache(self, prompt_wav):
        self.stream_cache, self.hift_cache_dict = [], {"speech": prompt_wav}

    def stream(self, tokens, prompt_wav, last_chunk):
        self.stream_cache = [*self.stream_cache, *tokens]
        self.calls.append((tokens, last_chunk, list(self.stream_cache)))
        return np.full(480, 16_384, "<i2").tobytes()


@pytest.fixture
def step(monkeypatch, tmp_path):
    def too_new(*_, **__):
        raise RuntimeError("torchcodec is required")  # as torchaudio 2.9 says

    install(monkeypatch, "torchaudio", load=too_new, save=too_new)
    install(monkeypatch, "token2wav", Token2wav=Token2wav)
    soundfile.write(tmp_path / "voice.wav", np.zeros(8000), 8000)
    return StepVoice(tmp_path, tmp_path / "voice.wav")


def test_the_voice_of_step_audio(step, tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    wave = step.decode(UNITS)
    assert torch.rand(1) == expected  # the random state of the caller is kept
    assert sampling_rate_of(step) == 24_000
    np.testing.assert_allclose(wave, tone(24_000), atol=1.1e-3)
    assert torch.equal(step.decode(UNITS), wave)  # the noise depends on the units only
    assert not torch.equal(step.decode(UNITS + 1), wave)
    assert step.decode(UNITS[:0]).shape == (0,)
    at_16k = decode_at(step, UNITS)
    np.testing.assert_allclose(at_16k[400:-400], tone(16_000)[400:-400], atol=3e-3)
    with pytest.raises(RuntimeError, match="torchcodec"):
        sys.modules["torchaudio"].load("voice.wav")  # only the authors' code reads by soundfile
    assert pickle.loads(pickle.dumps(step)) == step  # for a worker, without the authors' model
    assert step == eval(repr(step), {"StepVoice": StepVoice, "PosixPath": type(tmp_path)})
    elsewhere = StepVoice(step.folder, step.voice, "cuda:1")
    assert digest(elsewhere) == digest(step)  # a run can continue on another GPU


def test_step_audio_streams_in_blocks_of_its_authors(step):
    units = torch.arange(60)
    first = step.stream(iter([units[:30], units[30:]]))
    second = step.stream(units.split(7))
    pieces = [next(first), *second, *first]  # simultaneous streams have separate caches
    calls = step._loaded["vocoder"].calls
    of_first = [calls[0], *calls[-2:]]
    assert [c[0] for c in of_first] == [list(range(28)), list(range(25, 53)), list(range(50, 60))]
    assert [c[1] for c in of_first] == [False, False, True]
    assert of_first[-1][2] == [u for c in of_first for u in c[0]]
    assert [c[0] for c in calls[1:4]] == [c[0] for c in of_first]
    assert all(piece.shape == (480,) for piece in pieces)
    assert float(pieces[0][0]) == pytest.approx(0.5, abs=1e-4)
    install_old = sys.modules["token2wav"]
    install_old.Token2wav = type("Old", (), {"__init__": lambda self, folder: None})
    with pytest.raises(EepolicyError, match="Step-Audio2 is older than streaming: pull it"):
        next(pickle.loads(pickle.dumps(step)).stream(iter([units])))


class AudioDecoder:
    """The authors' class: its parts are left in training mode, and blocks have an overlap."""

    def __init__(self, config_path, flow_ckpt_path, hift_ckpt_path, device):
        named = [config_path, flow_ckpt_path, hift_ckpt_path]
        assert [n.rsplit("/", 1)[1] for n in named] == ["config.yaml", "flow.pt", "hift.pt"]
        assert device == "cpu"
        self.flow, self.hift = nn.Dropout(0.5), nn.Dropout(0.5)
        self.calls = []

    def token2wav(self, token, uuid, prompt_token, prompt_feat, finalize):
        self.calls.append((token[0].tolist(), prompt_token[0].tolist(), finalize, uuid))
        frames = 4 * token.shape[1]
        assert prompt_feat.shape == (1, 4 * prompt_token.shape[1], 80)
        if prompt_token.numel():
            assert prompt_feat[0, :, 0].tolist() == [
                float(u) for u in prompt_token[0] for _ in "1234"
            ]
        mel = token[0].float().repeat_interleave(4).expand(1, 80, frames)
        wave = self.hift(self.flow(torch.from_numpy(tone(22_050)).float()))
        return (wave + 1e-3 * torch.rand(22_050))[None], mel


@pytest.fixture
def glm(monkeypatch, tmp_path):
    install(monkeypatch, "flow_inference", AudioDecoder=AudioDecoder)
    return GlmVoice(tmp_path, "cpu")


def test_the_voice_of_glm(glm):
    wave = glm.decode(UNITS)
    np.testing.assert_allclose(wave, tone(22_050), atol=1.1e-3)  # without dropout
    assert torch.equal(glm.decode(UNITS), wave)
    assert sampling_rate_of(glm) == 22_050
    (*call, key), (_, _, _, other) = glm._loaded["vocoder"].calls
    assert call == [[5, 6, 7], [], True]
    assert key != other
    assert pickle.loads(pickle.dumps(glm)) == glm


def test_glm_streams_in_the_blocks_of_its_authors(glm):
    units = torch.arange(71)
    pieces = list(glm.stream(units.split(3)))
    calls = glm._loaded["vocoder"].calls
    blocks = [list(range(a, b)) for a, b in ((0, 10), (10, 30), (30, 70), (70, 71))]
    assert [c[0] for c in calls] == blocks
    assert [c[1] for c in calls] == [list(range(b[0])) for b in blocks]
    assert [c[2] for c in calls] == [False, False, False, True]
    assert len({c[3] for c in calls}) == 1
    assert len(pieces) == 4


def test_a_reply_streams_through_the_voice_of_glm(glm):
    """The vocoder makes the blocks itself, so the first sound needs eleven units only."""
    model = HookedModel(tiny("llama"), LAYOUT, vocoder=glm)
    out = model.generate(torch.arange(6), max_new_tokens=40)
    stream = model.stream_audio(torch.arange(6), max_new_tokens=40)
    assert stream.sampling_rate == out.sampling_rate == 22_050
    assert "not at its end" in stream._repr_html_()
    pieces = list(stream)
    assert sum(len(c[0]) for c in glm._loaded["vocoder"].calls) == len(out.units)
    assert stream.ttfa is not None
    assert len(pieces) == len(glm._loaded["vocoder"].calls)
    assert "audio/wav" in out._repr_html_()
    assert "audio/wav" in stream._repr_html_()


def test_a_unit_outside_the_codebook_is_an_error(step, glm):
    for voice, last in ((step, 6560), (glm, 16_383)):
        for units in (torch.tensor([0, last + 1]), torch.tensor([-1])):
            with pytest.raises(EepolicyError, match=f"units are 0 to {last}; got"):
                voice.decode(units)
            with pytest.raises(EepolicyError, match=f"units are 0 to {last}; got"):
                list(voice.stream(iter([units])))


def test_the_error_names_what_to_install(tmp_path, monkeypatch):
    for name in ("token2wav", "flow_inference"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EepolicyError, match=r"clone https://github\.com/stepfun-ai/Step-Audio2"):
        StepVoice(tmp_path, tmp_path).decode(UNITS)
    with pytest.raises(EepolicyError, match="no module 'flow_inference': clone"):
        GlmVoice(tmp_path, "cpu").decode(UNITS)

    def broken(*_, **__):
        raise ValueError("problem in matcha - No module named 'matcha'")

    install(monkeypatch, "flow_inference", AudioDecoder=broken)
    with pytest.raises(EepolicyError, match=r"cannot be loaded: ValueError: .*third_party/Matcha"):
        GlmVoice(tmp_path, "cpu").decode(UNITS)


def test_missing_parts_are_named_before_any_work(tmp_path, step, glm):
    with pytest.raises(EepolicyError, match=r"lacks config\.yaml, flow\.pt, hift\.pt: give the"):
        glm.check()
    for name in StepVoice.authors.files:
        (tmp_path / name).touch()
    step.check()
    step.voice.unlink()
    with pytest.raises(EepolicyError, match=r"voice\.wav is missing: give a sound file"):
        step.check()
    assert "matcha" in GlmVoice.authors.missing()
    assert "s3tokenizer" in StepVoice.authors.missing()
    assert "token2wav" not in StepVoice.authors.missing()


def test_other_mos_predictors(monkeypatch):
    class Model:
        def predict(self, input_path, device, num_workers, verbose):
            assert (device, num_workers, verbose) == ("cpu", 0, False)
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
