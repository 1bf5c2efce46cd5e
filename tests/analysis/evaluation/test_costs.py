"""Measured costs of a comparison: measured once, stored with the run, and restored."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import LAYOUT, tiny
from test_compare import QUESTIONS, Letters

from eepolicy import EepolicyError, HookedModel
from eepolicy.analysis.evaluation.config import RunConfig
from eepolicy.analysis.evaluation.records import RunFolder
from eepolicy.analysis.evaluation.run import run
from eepolicy.decode.config import EarlyExitConfig
from eepolicy.decode.rebatch import LayerCosts
from eepolicy.heads import ExitPredictor


def small() -> HookedModel:
    torch.set_num_threads(1)
    return HookedModel(tiny("llama"), LAYOUT, Letters())


def notes(folder) -> dict:
    return json.loads((folder / "run.json").read_text())["notes"]


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(("both=dynamic-draft@2, accept=exact",), max_new_tokens=12, timed=0),
        RunConfig(("both=static@2",), EarlyExitConfig(rebatch="auto"), max_new_tokens=12, timed=0),
    ],
    ids=["policy", "rebatch"],
)
def test_costs_are_those_of_the_first_start(tmp_path, config):
    folder, first = RunFolder(tmp_path / "run"), small()
    run(first, QUESTIONS[:2], folder, config)
    stored = notes(folder.path)["layer_costs"]
    assert LayerCosts.from_dict(stored["stock"]) == first.measured_costs[False]
    again = small()
    again.measured_costs[False] = LayerCosts((1, 2), (1.0, 2.0))  # another machine
    run(again, QUESTIONS[:2], folder, config)
    assert again.measured_costs == first.measured_costs
    assert notes(folder.path)["layer_costs"] == stored


def test_costs_are_not_measured_without_need(tmp_path):
    model, folder = small(), RunFolder(tmp_path / "run")
    run(model, QUESTIONS[:1], folder, RunConfig(("static@2",), max_new_tokens=6, timed=0))
    assert not model.measured_costs
    assert "layer_costs" not in notes(folder.path)


def test_a_run_refuses_another_predictor(tmp_path):
    model, folder = small(), RunFolder(tmp_path / "run")
    config = RunConfig(("both=predictor>0.4@[2]",), max_new_tokens=6, timed=0)
    with pytest.raises(EepolicyError, match="this model has none"):
        run(model, QUESTIONS[:1], folder, config)
    assert not folder.path.exists()  # before any work
    model.predictor = ExitPredictor([2], 32)
    run(model, QUESTIONS[:1], folder, config)
    run(model, QUESTIONS[:1], folder, config)
    model.predictor = ExitPredictor([2], 32, seed=1)
    with pytest.raises(EepolicyError, match="contains a run with another predictor"):
        run(model, QUESTIONS[:1], folder, config)
