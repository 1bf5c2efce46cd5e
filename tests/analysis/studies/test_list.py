"""The list of studies, the workspace, and a study from outside the list."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from conftest import LAYOUT, tiny
from matplotlib.figure import Figure

from eepolicy import EepolicyError, HookedModel
from eepolicy.analysis.studies import STUDIES, Measure, Study, Workspace, write_studies
from eepolicy.analysis.studies.base import by_name

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


def test_a_workspace_refuses_measurements_of_something_else(model, tmp_path):
    Workspace.open(model, QUESTIONS, tmp_path)
    with pytest.raises(EepolicyError, match="other questions; use another folder"):
        Workspace.open(model, [{"question": "dog", "keys": []}], tmp_path)
    with torch.no_grad():
        next(model.model.parameters()).add_(1)
    with pytest.raises(EepolicyError, match="another model"):
        Workspace.open(model, QUESTIONS, tmp_path)


def test_measures_are_looked_up_by_name():
    measures = (Measure("kl", "KL", "nats"), Measure("wer", "WER", "%", 100, 1))
    assert by_name(measures, "wer").heading == "WER, %"
    with pytest.raises(EepolicyError, match="the measures are kl, wer"):
        by_name(measures, "mos")
