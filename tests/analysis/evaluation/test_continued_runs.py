"""Runs that continue with other questions, answers, sounds and policies."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import tiny
from example_record import RECORD
from test_compare import DEV, LAYOUT, QUESTIONS, Letters

from eepolicy import EepolicyError, HookedModel
from eepolicy.analysis.evaluation.columns import COLUMNS
from eepolicy.analysis.evaluation.config import RunConfig
from eepolicy.analysis.evaluation.formats import QuestionLine, TimingLine
from eepolicy.analysis.evaluation.load import load_comparison
from eepolicy.analysis.evaluation.records import RunFolder, question_key
from eepolicy.analysis.evaluation.rows import parse_row
from eepolicy.analysis.evaluation.run import run
from eepolicy.analysis.evaluation.timing import Timer
from eepolicy.speech.units import Units

SHORT = {"max_new_tokens": 8, "timed": 0}


@pytest.fixture(scope="module")
def spoken() -> HookedModel:
    codebook = torch.randn(40, 320, generator=torch.Generator().manual_seed(0)) - 5
    return HookedModel(tiny("llama"), LAYOUT, Letters(), vocoder=Units(codebook))


@pytest.mark.parametrize(
    ("change", "what"), [({"keys": ["pet"]}, "answers"), ({"audio": "b/cat.wav"}, "sound")]
)
def test_a_run_refuses_questions_with_other_answers_or_sounds(spoken, tmp_path, change, what):
    folder, config = RunFolder(tmp_path / "run"), RunConfig(["static@3"], **SHORT)
    run(spoken, QUESTIONS[:2], folder, config)
    before = folder.lines(QuestionLine)
    with pytest.raises(EepolicyError, match=f"replies to 'cat' with another {what}|no audio"):
        run(spoken, [QUESTIONS[0] | change, *QUESTIONS[1:3]], folder, config)
    assert folder.lines(QuestionLine) == before


def test_a_report_has_the_questions_of_the_last_call(spoken, tmp_path):
    folder, config = RunFolder(tmp_path / "run"), RunConfig(["static@3"], **SHORT)
    run(spoken, QUESTIONS, folder, config)
    again = run(spoken, QUESTIONS[1:3], folder, config)
    names = [q["question"] for q in QUESTIONS[1:3]]
    assert [q["question"] for q in load_comparison(folder.path).questions] == names
    assert [q["question"] for q in again.questions] == names


def test_questions_of_the_calibration_are_not_compared(spoken, tmp_path):
    folder = RunFolder(tmp_path / "run")
    run(spoken, QUESTIONS[:1], folder, RunConfig(calibration=DEV, **SHORT))
    assert folder.read()[1]["calibrated_on"] == [question_key(q["question"]) for q in DEV]
    with pytest.raises(EepolicyError, match="were calibrated on 'ox'"):
        run(spoken, DEV, folder, RunConfig(calibration=QUESTIONS, **SHORT))
    run(spoken, DEV, folder, RunConfig(["static@3"], **SHORT))


def timing(question: str, policy: str) -> TimingLine:
    return TimingLine(question=question, policy=policy, seconds=1.0, ttft=0.1, tokens=3)


def test_all_policies_are_timed_again_beside_a_new_one(spoken, tmp_path):
    """A stopped run continues; a row that is added later is not compared with earlier times."""
    folder = RunFolder(tmp_path / "run")
    folder.open({})
    rows = [parse_row(spec) for spec in ("full", "static@3", "static@2")]
    names = [q["question"] for q in QUESTIONS[:3]]
    timer = Timer(spoken, QUESTIONS, rows, RunConfig(timed=3))

    def missing() -> list[tuple[int, str]]:
        return [(i, row.spec) for i, row in timer.missing(folder)]

    assert len(missing()) == 9
    for name in names[:1]:
        folder.append([timing(name, row.spec) for row in rows])
    folder.append([timing(names[1], "static@3")])  # it was stopped here
    assert missing() == [
        *[(1, "static@2"), (1, "full")],
        *[(2, "static@2"), (2, "full"), (2, "static@3")],
    ]
    folder.append([timing(name, row.spec) for name in names[1:] for row in rows])
    assert missing() == []
    timer = replace(timer, rows=[*rows, parse_row("static@1")])
    assert len(missing()) == 12
    assert [spec for i, spec in missing() if i == 0] == [row.spec for row in timer.rows]


def test_time_per_later_token_is_that_of_the_timed_reply():
    [column] = [column for column in COLUMNS if column.name == "tpot"]
    timed = replace(RECORD, seconds=0.9, ttft=0.4, timed_tokens=11)
    top, bottom = column.sums([[timed]])
    assert (top[0], bottom[0]) == pytest.approx((500.0, 10))
