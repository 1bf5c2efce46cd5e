"""Each part that can fail late is tried first, and named when it fails."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from conftest import LAYOUT, tiny

from eepolicy import EepolicyError, HookedModel
from eepolicy.analysis.evaluation.metrics import SpeechMetrics
from eepolicy.analysis.evaluation.preflight import preflight


@dataclass
class Part:
    """A vocoder, recognizer, rater and judge that notes its inputs."""

    value: object = None
    seen: object = None

    def _answer(self, *seen):
        self.seen = seen
        if isinstance(self.value, Exception):
            raise self.value
        return self.value

    decode = transcribe = rate = _answer

    def judge(self, question, reply, is_transcript=True):
        return self._answer(question, reply)


SOUND = torch.linspace(-1, 1, 16_000)


def model(vocoder=None) -> HookedModel:
    return HookedModel(tiny("llama"), LAYOUT, vocoder=vocoder)


def test_each_part_runs_once_on_a_second_of_sound():
    vocoder, asr, mos, judge = Part(SOUND), Part("hi"), Part(2.5), Part(1.0)
    speaking = model(vocoder)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    assert preflight(speaking, SpeechMetrics(asr, mos, judge)) == []
    assert torch.rand(1) == expected  # the random state of the caller is kept
    [units] = vocoder.seen
    assert units.shape == (25,)
    assert 0 <= units.min() <= units.max() < LAYOUT.speech[1] - LAYOUT.speech[0]
    assert asr.seen[0] is mos.seen[0] is SOUND
    assert judge.seen[1] == "An oak is a tree."


def test_without_a_vocoder_a_tone_is_heard():
    asr = Part("")
    preflight(model(), SpeechMetrics(asr))
    [wave] = asr.seen
    assert wave.shape == (16_000,)
    assert wave.isfinite().all()


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        (
            {"vocoder": Part(FileNotFoundError("no flow.pt"))},
            "vocoder Part.* FileNotFoundError: no",
        ),
        ({"vocoder": Part(torch.zeros(0))}, "its sound is empty or contains NaN"),
        ({"vocoder": Part(SOUND * torch.nan)}, "its sound is empty or contains NaN"),
        ({"vocoder": Part(SOUND[None])}, r"returns floats \(samples,\); got \(1, 16000\)"),
        ({"vocoder": Part(None)}, "got NoneType"),
        (
            {"asr": Part(RuntimeError("cuBLAS 12"))},
            "speech recognition failed: RuntimeError: cuBLAS",
        ),
        ({"asr": Part(None)}, "speech recognition failed: it returns a string; got None"),
        ({"mos": Part(EepolicyError("no weights"))}, "the MOS predictor failed: no weights$"),
        ({"mos": Part(float("nan"))}, "returns a rating from 1 to 5; got nan"),
        ({"judge": Part(EepolicyError("does not answer"))}, "the judge failed: does not answer"),
        ({"judge": Part(None)}, "on the reply 'Snow is white.' contains no score"),
        (
            {"asr": Part(OSError("a")), "mos": Part(OSError("b")), "judge": Part(OSError("c"))},
            "OSError: a; the MOS predictor failed: OSError: b; the judge failed: OSError: c",
        ),
    ],
)
def test_a_failing_part_is_named_before_any_reply(parts, match):
    vocoder = parts.pop("vocoder", Part(SOUND))
    with pytest.raises(EepolicyError, match="before any reply was made.*" + match):
        preflight(model(vocoder), SpeechMetrics(**parts))


def test_a_judge_that_rejects_a_right_answer_is_worth_a_note():
    [note] = preflight(model(), SpeechMetrics(judge=Part(0.0)))
    assert "'Snow is white.' a wrong answer" in note
