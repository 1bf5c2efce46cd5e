"""Drift in what is heard, on replies made by hand with known differences."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from eepolicy import EepolicyError
from eepolicy.analysis.studies import Workspace
from eepolicy.analysis.studies import heard_drift as study_module
from eepolicy.analysis.studies.heard_drift import HeardDrift
from eepolicy.analysis.studies.heard_replies import Heard, hear, heard_drift, pitch_of

#: 25 units a second; the distances of neighbours in the codebook are 1
CODEBOOK = torch.arange(300.0)[:, None]
MODEL = SimpleNamespace(vocoder=SimpleNamespace(codebook=CODEBOOK))
TEXT = "snow fell on grass and birds went south"


@dataclass(frozen=True)
class Reply:
    """What the study reads of an `Output`."""

    units: Tensor
    text: str = TEXT
    layer_calls: int = 8

    @property
    def trace(self):
        return _Trace(np.array([self.layer_calls] * 10))

    def audio_at(self, rate):
        return torch.zeros(len(self.units) * 640)


class _Trace:
    def __init__(self, layer_calls):
        self.layer_calls = layer_calls

    def __len__(self):
        return len(self.layer_calls)


def heard(units, transcript=TEXT, pitch=100.0, **more) -> Heard:
    return Heard(Reply(units, **more), transcript, np.full(len(units), pitch))


#: four seconds, no unit twice
FULL = heard(torch.arange(100))


def means(frame: pd.DataFrame, top: str, bottom: str) -> list[float]:
    return (frame[top] / frame[bottom]).tolist()


def test_equal_replies_do_not_drift():
    frame = heard_drift(MODEL, [FULL], [FULL])
    assert frame.pairs.tolist() == [25] * 4
    assert frame.words.tolist() == [2] * 4
    assert frame[["errors", "distance", "semitones"]].to_numpy().sum() == 0
    first = frame.iloc[0]
    assert (first.calls, first.tokens, first.heard, first.changed) == (80, 10, 8, 0)
    assert (first.replies, first.same, first.seconds, first.longer) == (1, 1, 4, 0)
    assert frame.calls[1:].isna().all()


def test_differences_are_in_the_windows_where_they_are():
    # from the third second on, each unit sounds unlike those at full depth, by half a step
    codebook = torch.cat([CODEBOOK[:100], CODEBOOK[:100] + 0.5])
    model = SimpleNamespace(vocoder=SimpleNamespace(codebook=codebook))
    pitch = np.full(100, 100.0)
    pitch[25:] = 100 * 2 ** (1 / 12)  # a semitone up from the second second on
    pitch[50] = np.nan  # and a unit without voice
    units = torch.cat([torch.arange(50), torch.arange(50, 100) + 100])
    own = Heard(Reply(units), "snow fell in grass and birds went mouth there", pitch)
    frame = heard_drift(model, [own], [FULL])
    assert means(frame, "distance", "pairs") == pytest.approx([0, 0, 0.5, 0.5], abs=1e-6)
    assert means(frame, "semitones", "voiced") == pytest.approx([0, 1, 1, 1])
    # warping pairs the unit at the border twice at most
    assert frame.pairs.sum() in (100, 101)
    assert frame.voiced.sum() == frame.pairs.sum() - 1
    # "in" is word 3 of 8, in the second second; "mouth" and an inserted word are at the end
    assert frame.errors.tolist() == [0, 1, 0, 2]
    assert frame.changed[0] == 3


def test_a_longer_reply_is_warped():
    # every unit of the second second is spoken twice
    units = torch.cat([torch.arange(25), torch.arange(25, 50).repeat_interleave(2)])
    frame = heard_drift(MODEL, [heard(units)], [heard(torch.arange(50))])
    assert frame.distance.sum() == pytest.approx(0, abs=1e-3)
    assert frame.pairs.tolist() == [25, 25, 25, 0]
    assert (frame.seconds[0], frame.longer[0]) == (2, 1)


def test_another_text_has_words_but_no_sound_to_compare():
    other = heard(torch.arange(50), "cats drink milk", text="Cats drink milk.")
    frame = heard_drift(MODEL, [other, FULL], [FULL, FULL])
    own = frame[frame.document == 0]
    assert own[["pairs", "distance", "voiced", "semitones", "longer"]].isna().all(axis=None)
    assert (own.same.iloc[0], own.words.sum(), own.errors.sum()) == (0, 3, 0)
    assert own.changed.iloc[0] == 8
    study = HeardDrift(frame.assign(policy="static@4"))
    row = study.to_pandas().iloc[0]
    assert (row.same_text, row.acoustic, row.duration) == (50, 0, 0)
    assert row.changed == 50


def study_of(errors: dict[str, tuple[int, list[int]]]) -> HeardDrift:
    """A study of policies with layer calls a token and wrong words of each reply."""
    parts = []
    for policy, (calls, wrong) in errors.items():
        replies = [
            replace(
                heard(torch.arange(100), layer_calls=calls),
                transcript=" ".join(["x"] * n + TEXT.split()[n:]),
            )
            for n in wrong
        ]
        frame = heard_drift(MODEL, replies, [FULL] * len(wrong))
        parts.append(frame.assign(policy=policy))
    return HeardDrift(pd.concat(parts, ignore_index=True))


def test_tables_and_figure_show_the_numbers():
    study = study_of(
        {
            "full": (20, [0, 0, 0, 1]),
            "static@14": (15, [2, 2, 2, 2]),
            "spark:even@8": (14, [1, 1, 1, 1]),
            "static@4": (8, [4, 4, 0, 4]),
        }
    )
    table = study.table()
    assert "| `full` | 20.00 [20.00, 20.00] | 3.1 [0.0, 9.4] |" in table
    assert (
        "| `spark:even@8` | `static@14` | -1.00 | -12.5 [-12.5, -12.5] | -12.5 [-12.5, -12.5] |"
    ) in table
    # two words a second: of the first two, both are wrong in three of four replies
    assert "| `static@4` | WER, % | 75.0 [25.0, 100.0] | 75.0 [25.0, 100.0] | 0.0" in table
    axes = study.figure().axes
    shown = axes[0].containers[1].lines[0]  # full, static@4, static@14
    assert shown.get_ydata().tolist() == pytest.approx([75, 75, 0, 0])
    assert len(axes[3].containers) == 4


class CountSamples:
    """Speech recognition whose transcript is the number of samples."""

    def transcribe(self, wave):
        return str(len(wave))


def test_replies_are_transcribed_in_batches():
    batches = []

    def generate(questions, policy, max_new_tokens, do_sample):
        batches.append(list(questions))
        assert policy == "static@4"
        return [Reply(torch.arange(len(q))) for q in questions]

    vocoder = SimpleNamespace(
        codebook=CODEBOOK, pitch=lambda units: torch.tensor([[100.0, torch.nan]] * len(units))
    )
    model = SimpleNamespace(generate=generate, vocoder=vocoder)
    every = hear(model, [*["ab"] * 25, "abc"], "static@4", CountSamples())
    assert [len(questions) for questions in batches] == [25, 1]
    assert every[-1].transcript == str(3 * 640)
    assert every[-1].pitch.tolist() == [100.0] * 3
    assert np.isnan(pitch_of(SimpleNamespace(), torch.arange(4))).all()


def test_a_study_continues_with_the_policies_that_are_not_stored(tmp_path, monkeypatch):
    measured = []

    def fake(model, questions, policy, asr):
        measured.append(policy)
        return [FULL if policy == "full" else heard(torch.arange(50))] * len(questions)

    monkeypatch.setattr(study_module, "hear", fake)
    monkeypatch.setattr(study_module, "Whisper", CountSamples)
    monkeypatch.setattr(study_module, "POLICIES", ("static@4",))
    workspace = Workspace(MODEL, [{"question": "cat", "keys": []}], tmp_path)
    first = HeardDrift.run(workspace)
    assert first.policies == ["full", "static@4"]
    assert first.to_pandas().duration.tolist() == [0, 50]
    assert measured == ["full", "static@4"]
    monkeypatch.setattr(study_module, "POLICIES", ("static@4", "static@6"))
    assert HeardDrift.run(workspace).policies == ["full", "static@4", "static@6"]
    assert measured == ["full", "static@4", "full", "static@6"]


def test_a_vocoder_without_codebook_is_refused():
    with pytest.raises(EepolicyError, match="a vocoder with a codebook"):
        heard_drift(SimpleNamespace(vocoder=None), [FULL], [FULL])
