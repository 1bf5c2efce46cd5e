"""The trial before a run: measured speeds, and an estimate from them."""

from __future__ import annotations

import time

import pytest
import torch
from loading import test_glm4_voice

import eepolicy
from eepolicy import EepolicyError
from eepolicy.analysis.evaluation.config import RunConfig
from eepolicy.analysis.evaluation.metrics import SpeechMetrics
from eepolicy.analysis.evaluation.records import RunFolder
from eepolicy.analysis.evaluation.run import run
from eepolicy.analysis.evaluation.table2_estimate import DECODING_SHARE
from eepolicy.analysis.evaluation.table2_sizes import ModelSize
from eepolicy.analysis.evaluation.trial import TOKENS, try_out


class Slow:
    """A vocoder, recognizer, rater and judge that take a known time."""

    sampling_rate = 22_050

    def decode(self, units):
        assert len(units) == 25  # two seconds at 12.5 a second
        time.sleep(0.05)
        return torch.zeros(22_050 * 2)

    def transcribe(self, wave):
        assert wave.shape == (32_000,)
        time.sleep(0.1)
        return "word"

    def rate(self, wave):
        return 3.0

    def judge(self, question, reply, is_transcript=True):
        time.sleep(0.02)
        return 1.0


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glm")
    test_glm4_voice.write(folder, test_glm4_voice.weights(), test_glm4_voice.CONFIG)
    return eepolicy.load(str(folder))


def test_a_trial_measures_each_part(model, monkeypatch):
    slow = Slow()
    monkeypatch.setattr(model, "vocoder", slow)
    questions = [{"question": q} for q in ("the", "and", "on")]
    trial = try_out(model, SpeechMetrics(slow, slow, slow), questions, RunConfig(batch=2), 2.0)
    parts = trial.reply_seconds
    assert parts["vocoder"] >= 0.05
    assert parts["recognition"] >= 0.1
    assert parts["judge"] >= 0.02
    assert set(parts) == {"vocoder", "recognition", "rating", "judge"}
    size = ModelSize.of(model)
    assert (size.layers, size.rate, size.sampling_rate) == (4, 12.5, 22_050)
    assert size.weights == sum(p.numel() for p in model.model.parameters())
    # the bandwidth at which a full-depth step has the measured time
    read = size.layers * size.layer_bytes + size.head_bytes
    seconds = read / (trial.machine.bytes_per_second * DECODING_SHARE)
    assert seconds == pytest.approx(trial.step_seconds)
    assert trial.machine.flops > 0
    assert TOKENS < 100


def test_a_spoken_question_for_a_model_that_cannot_hear_is_an_error(model, tmp_path):
    questions = [{"question": "Who?", "audio": "a.wav"}]
    with pytest.raises(EepolicyError, match=r"'Who\?' is spoken, .* give written questions"):
        run(model, questions, RunFolder(tmp_path / "run"), RunConfig(["static@3"]))
    assert not (tmp_path / "run").exists()
