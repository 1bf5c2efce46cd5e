"""Sound at another rate than 16 kHz: stored at its own, heard by the metrics at 16 kHz."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from conftest import LAYOUT, tiny

from eepolicy import HookedModel
from eepolicy.analysis.evaluation.config import RunConfig
from eepolicy.analysis.evaluation.measure import Blocks, decode
from eepolicy.analysis.evaluation.metrics import SpeechMetrics
from eepolicy.analysis.evaluation.rows import parse_row
from eepolicy.analysis.evaluation.sound import Clip, SoundItem, SoundStage


class Tone:
    """A vocoder with 30 ms at 440 Hz a unit, at 24 kHz."""

    sampling_rate = 24_000

    def decode(self, units):
        time = torch.arange(720 * len(units)) / self.sampling_rate
        return 0.5 * torch.sin(2 * torch.pi * 440 * time)

    def stream(self, chunks):
        yield from map(self.decode, chunks)


class Ear:
    """A recognizer and rater that notes what it hears."""

    def __init__(self):
        self.heard = []

    def transcribe(self, wave):
        self.heard.append(wave)
        return "hello"

    def rate(self, wave):
        self.heard.append(wave)
        return 3.0


def test_files_have_the_rate_of_the_vocoder_and_metrics_hear_16_khz(tmp_path):
    ear, file = Ear(), tmp_path / "a.flac"
    stage = SoundStage(Tone(), SpeechMetrics(ear, ear))
    result = stage(SoundItem((Clip("a", tuple(range(50)), file, rated=True),)))
    assert result.speech.clips[0].seconds == 1.5
    [(stored, sound)] = result.sounds
    assert stored == file
    wave, rate = soundfile.read(io.BytesIO(sound))
    assert (len(wave), rate) == (36_000, 24_000)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(24_000) / 16_000)
    for heard in ear.heard:
        assert heard.shape == (24_000,)
        # measured 7e-4, the resampling filter
        np.testing.assert_allclose(heard[400:-400], expected[400:-400], atol=2e-3)
    assert len(ear.heard) == 2


class Checked(Tone):
    """A vocoder that takes integers only, as codecs do."""

    def decode(self, units):
        assert not units.is_floating_point()
        return super().decode(units)


def test_a_reply_without_speech_is_silence(tmp_path):
    ear = Ear()
    stage = SoundStage(Checked(), SpeechMetrics(ear, ear))
    result = stage(SoundItem((Clip("a", (), tmp_path / "a.flac"),)))
    assert result.speech.clips[0].seconds == 0
    assert not result.sounds


def test_replies_and_streams_report_the_rate():
    model = HookedModel(tiny("llama"), replace(LAYOUT, text_chunk=0), vocoder=Tone())
    prompt, speech_only = torch.arange(5, 15), {"restrict_vocab": True, "min_new_tokens": 9}
    out = model.generate(prompt, max_new_tokens=20, **speech_only)
    assert out.sampling_rate == 24_000
    assert len(out.audio) == 720 * len(out.units) > 0
    assert model.stream_audio(prompt, max_new_tokens=20).sampling_rate == 24_000
    player = out._repr_html_().partition("base64,")[2].partition('"')[0]
    assert soundfile.info(io.BytesIO(base64.b64decode(player))).samplerate == 24_000


@pytest.mark.parametrize("reads_aloud", [False, True])
def test_the_speech_of_a_model_that_reads_aloud_should_say_the_question(reads_aloud):
    model = HookedModel(tiny("llama"), LAYOUT)
    outs = model.generate([torch.arange(5, 15)], max_new_tokens=8)
    replies = SimpleNamespace(
        card=SimpleNamespace(reads_aloud=reads_aloud), generate=lambda *_, **__: outs
    )
    blocks = Blocks([{"question": "Read this."}], [parse_row("full")], RunConfig())
    [line] = decode(replies, blocks, blocks.items()[0])
    assert line.text == ("Read this." if reads_aloud else "")
