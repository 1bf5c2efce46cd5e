"""The list of studies, the workspace, and a study from outside the list."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import LAYOUT, tiny
from matplotlib.figure import Figure

from eepolicy import EepolicyError, HookedModel
from eepolicy.analysis.studies import STUDIES, Measure, Study, Workspace, base, write_studies
from eepolicy.analysis.studies import __main__ as command
from eepolicy.analysis.studies.base import by_name, depths_without_branch

ROOT = Path(__file__).parents[3]
QUESTIONS = [{"question": "cat", "keys": ["fish"]}]


class Mine(Study):
    name, title, help = "my_study", "Mine", "a study of a user"

    def __init__(self, questions):
        self.questions = questions

    @classmethod
    def run(cls, workspace):
        return cls(workspace.stored("mine", lambda: pd.DataFrame({"text": workspace.texts})))

    def table(self):
        return f"| {self.questions.text[0]} |"

    def figure(self):
        return Figure()

    def to_pandas(self):
        return self.questions


@pytest.fixture
def model():
    return HookedModel(tiny("llama"), layout=LAYOUT)


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_every_study_declares_itself(study):
    assert not study.__abstractmethods__
    for text in (study.name, study.title, study.help):
        assert text.strip() == text != ""
    assert study.name.isidentifier()
    assert [s.name for s in STUDIES].count(study.name) == 1


def test_a_study_of_a_user_is_written_like_the_others(model, tmp_path):
    workspace = Workspace.open(model, QUESTIONS, tmp_path / "work")
    results = write_studies(workspace, tmp_path / "docs", [Mine])
    assert results["my_study"].to_pandas().text.tolist() == ["cat"]
    assert (tmp_path / "docs" / "my-study.md").read_text() == "| cat |\n"
    assert (tmp_path / "docs" / "my-study.svg").exists()
    # measurements are read from the folder the next time
    (tmp_path / "work" / "mine.csv").write_text("text\nstored\n")
    again = Workspace.open(model, QUESTIONS, tmp_path / "work")
    assert Mine.run(again).table() == "| stored |"


def test_a_workspace_refuses_other_questions_and_models(model, tmp_path):
    Workspace.open(model, QUESTIONS, tmp_path)
    with pytest.raises(EepolicyError, match="other questions; use another folder"):
        Workspace.open(model, [{"question": "dog", "keys": []}], tmp_path)
    with torch.no_grad():
        next(model.model.parameters()).add_(1)
    with pytest.raises(EepolicyError, match="another model"):
        Workspace.open(model, QUESTIONS, tmp_path)


def test_depths_with_a_branch_are_left_out(pocket, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "generate_replies", partial(base.generate_replies, max_new_tokens=8))
    questions = [{"question": "What color is snow?", "keys": []}]
    depths = Workspace.open(pocket, questions, tmp_path).probed.depths.tolist()
    assert pocket.branches.keys() >= {4, 6}
    assert depths == [d for d in range(1, 21) if d not in (4, 6)]
    assert depths_without_branch(20, pocket.lens) == [*range(1, 21)]


def test_measures_are_looked_up_by_name():
    measures = (Measure("kl", "KL", "nats"), Measure("wer", "WER", "%", 100, 1))
    assert by_name(measures, "wer").heading == "WER, %"
    with pytest.raises(EepolicyError, match="the measures are kl, wer"):
        by_name(measures, "mos")


class Timed(Mine):
    name, measured_time, by_default = "timed_study", "3 minutes on one core", False


def test_the_command_prints_times_and_what_it_leaves_out(model, tmp_path, monkeypatch, capsys):
    for name, value in (("STUDIES", (Mine, Timed)), ("load", lambda name: model)):
        monkeypatch.setattr(command, name, value)
    monkeypatch.setattr(command, "held_out", lambda split: QUESTIONS)
    work = [str(tmp_path / "work"), "--threads", "1", "--write", str(tmp_path / "docs")]
    monkeypatch.setattr(sys, "argv", ["studies", *work])
    command.main()
    first, took, left_out = capsys.readouterr().out.splitlines()
    assert first == "[1/1] my_study: expected time: not measured"
    assert took == "[1/1] my_study: 0.0 minutes"
    assert left_out == "left out: timed_study; run them with --only"
    monkeypatch.setattr(sys, "argv", ["studies", *work, "--only", "timed_study"])
    command.main()
    expected, _ = capsys.readouterr().out.splitlines()
    assert expected == "[1/1] timed_study: expected time: 3 minutes on one core"


def test_make_figures_reaches_every_study():
    def commands(*options: str) -> str:
        line = ["make", "--dry-run", "--always-make", "figures", *options]
        # a make that runs the tests passes its own options on
        env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        return subprocess.run(
            line, cwd=ROOT, env=env, capture_output=True, text=True, check=True
        ).stdout

    assert commands().rstrip().endswith("-m eepolicy.analysis.studies work/findings")
    some = commands("STUDIES=lenses policy_search").rstrip()
    assert some.endswith("studies work/findings --only lenses policy_search")
    text = (ROOT / "docs" / "findings" / "index.md").read_text()
    named = {study.name for study in STUDIES if not study.by_default}
    by_name = re.search(r'make figures STUDIES="([a-z_ ]+)"', text)
    assert by_name
    assert {*by_name[1].split()} == named
