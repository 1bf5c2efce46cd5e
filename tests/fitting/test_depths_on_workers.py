"""Depths that workers fit get the weights of one process."""

from __future__ import annotations

import dataclasses
import os
import sys
from contextlib import ExitStack

import pickled_workers
import pytest
import torch
from conftest import LAYOUT, tiny
from test_rounds import CONFIG, GENERATION, moved, questions

from eepolicy import EepolicyError, HookedModel
from eepolicy.fitting import (
    FitConfig,
    Reports,
    fit_by_depth,
    fit_rounds,
    generate_replies,
)
from eepolicy.fitting.result import FitResult
from eepolicy.fitting.rounds_workers import spreads_depths
from eepolicy.folder_lock import locked_file
from eepolicy.heads import FittedHead
from eepolicy.workers import OrderedWorkers, WorkerConfig

LENSES = FitConfig("linear", depths=(1, 3, 4), epochs=2, patience=9, batch_tokens=40)
BRANCHES = dataclasses.replace(CONFIG, depths=(2, 4), epochs=1, rounds=1, round_epochs=1)


def make_model() -> HookedModel:
    torch.set_num_threads(1)
    return HookedModel(tiny("llama"), layout=LAYOUT)


def count(model: HookedModel, replies: list) -> dict[str, int]:
    return {"count": len(replies), "layers": model.depth}


def fit_lenses(folder, **spread) -> FitResult:
    model = make_model()
    prompts = [
        torch.randint(60, (5,), generator=torch.Generator().manual_seed(i)) for i in range(6)
    ]
    replies = generate_replies(model, prompts, max_new_tokens=20)
    lines: list[str] = []
    result = fit_by_depth(
        model, replies[:4], replies[4:], LENSES, folder, report=lines.append, **spread
    )
    assert sum("mean KL" in line for line in lines) == 6  # 2 epochs of each depth
    return result


def fit_branches(folder, workers: WorkerConfig | int = 0, **options) -> FitResult:
    generation = dataclasses.replace(GENERATION, workers=workers, load=make_model)
    return fit_rounds(make_model(), questions(), BRANCHES, folder, generation=generation, **options)


def check_same(result: FitResult, expected: FitResult) -> None:
    assert result.notes == expected.notes
    weights, wanted = result.heads.state_dict(), expected.heads.state_dict()
    assert weights.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(weights[name], tensor), name


@pytest.fixture
def pickled(monkeypatch) -> list[WorkerConfig]:
    """Workers of this process; the list has the config of each start."""
    configs: list[WorkerConfig] = []
    real = WorkerConfig.start

    def start(config, make, own=None):
        configs.append(config)
        return (pickled_workers.start if config.spreads else real)(config, make, own)

    monkeypatch.setattr(WorkerConfig, "start", start)
    return configs


pytestmark = pytest.mark.filterwarnings("ignore:the KL from the last layer fell")


def test_lenses(tmp_path, pickled):
    expected = fit_lenses(tmp_path / "alone")
    pickled.clear()
    result = fit_lenses(tmp_path / "workers", workers=2, load=make_model)
    assert WorkerConfig(2) in pickled
    check_same(result, expected)
    for depth in LENSES.depths:
        name = f"depth-{depth}.safetensors"
        alone, spread = (tmp_path / folder / name for folder in ("alone", "workers"))
        assert spread.read_bytes() == alone.read_bytes()


@pytest.mark.parametrize("with_start", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_branches(tmp_path, pickled, monkeypatch, with_start):
    """Another process may hold the locks of the replies that all depths share."""
    start = None
    if with_start:
        model = make_model()
        start = FittedHead({d: moved(model, "branch", d).at(d) for d in BRANCHES.depths})
    lines: list[str] = []
    options = {"start": start, "reports": Reports(lines.append, measure=count)}
    expected = fit_branches(tmp_path / "alone", **options)
    alone = list(lines)
    lines.clear()
    pickled.clear()
    run = OrderedWorkers.run
    shared = ["full-1", "held_out"] if with_start else ["full", "held_out"]

    def beside_another(*args):
        with ExitStack() as stack:
            for name in shared:
                assert (tmp_path / f"workers/{name}.jsonl").is_file()
                stack.enter_context(locked_file(tmp_path / f"workers/{name}.jsonl"))
            yield from run(*args)

    monkeypatch.setattr(OrderedWorkers, "run", beside_another)
    check_same(fit_branches(tmp_path / "workers", 1, **options), expected)
    assert WorkerConfig(1) in pickled
    assert [line for line in lines if "round" in line and "estimate" not in line] == [
        line for line in alone if "round" in line and "estimate" not in line
    ]
    files = [
        {str(f.relative_to(tmp_path / name)) for f in (tmp_path / name).rglob("*") if f.is_file()}
        for name in ("alone", "workers")
    ]
    assert files[0] == files[1]
    assert {row["count"] for row in expected.notes["rounds"]} == {6}


def test_fewer_depths_than_processes_are_fitted_one_after_another(tmp_path):
    plan = type("Plan", (), {"config": BRANCHES})()
    for workers, spreads in ((0, False), (1, True), (2, False), (WorkerConfig(2, "local"), True)):
        plan.generation = dataclasses.replace(GENERATION, workers=workers, load=make_model)
        assert spreads_depths(plan) == spreads
    plan.generation = dataclasses.replace(GENERATION, workers=1)  # no worker can load the model
    assert not spreads_depths(plan)


def test_a_folder_missing_on_a_worker_is_refused(tmp_path, pickled, monkeypatch):
    def hidden(config, make, own=None):
        (tmp_path / "fit.json").unlink(missing_ok=True)
        return pickled_workers.start(config, make, own)

    monkeypatch.setattr(WorkerConfig, "start", hidden)
    with pytest.raises(EepolicyError, match="give a folder that all of them share"):
        fit_branches(tmp_path, 1)


@pytest.mark.slow
def test_two_processes(tmp_path):
    expected = fit_lenses(tmp_path / "alone")
    check_same(fit_lenses(tmp_path / "workers", workers=1, load=make_model), expected)
    expected = fit_branches(tmp_path / "alone-branches")
    check_same(fit_branches(tmp_path / "workers-branches", 1), expected)


@pytest.mark.slow
def test_a_ray_cluster(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for the modules of the tests
    expected = fit_lenses(tmp_path / "alone")
    workers = WorkerConfig(1, ray="local")
    check_same(fit_lenses(tmp_path / "workers", workers=workers, load=make_model), expected)
