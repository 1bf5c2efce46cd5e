"""A probe on workers writes the folder of one process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pickled_workers
import pytest
import torch
from conftest import LAYERS, LAYOUT, tiny

from eepolicy import Document, EepolicyError, HookedModel, ProbeResult, probe
from eepolicy.heads import TunedLens
from eepolicy.probing import Statistic
from eepolicy.probing.statistics import LogitContext
from eepolicy.workers import WorkerConfig


def make_model() -> HookedModel:
    torch.set_num_threads(1)
    model = HookedModel(tiny("llama"), LAYOUT)
    model.heads = TunedLens.untrained(model.lens, range(1, LAYERS), width=32)
    return model


def make_other_model() -> HookedModel:
    return HookedModel(tiny("llama", 3), LAYOUT)


def top_logit(context: LogitContext) -> torch.Tensor:
    return context.logits.max(-1).values


MINE = Statistic(name="top_logit", description="the largest logit", compute=top_logit)
OPTIONS = {"statistics": ["entropy", "kl", "rank_next", MINE], "top_k": 3, "hidden_states": [2]}


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    generator = torch.Generator().manual_seed(1)
    lengths = (5, 9, 3, 8, 4, 7, 11, 6, 5, 3, 4, 9, 6, 5, 12)
    return [Document(torch.randint(60, (n,), generator=generator), n // 3) for n in lengths]


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix != ".lock"}


@pytest.fixture(scope="module")
def whole(documents, tmp_path_factory) -> dict[str, bytes]:
    """The files that one process writes."""
    folder = tmp_path_factory.mktemp("whole")
    torch.set_num_threads(1)
    probe(make_model(), documents, save=folder, **OPTIONS)
    assert {"entropy.npy", "top_logit.npy", "hidden_states.npy"} <= files(folder).keys()
    return files(folder)


def test_shards_merge_to_the_folder_of_one_process(whole, documents, tmp_path, monkeypatch):
    monkeypatch.setattr(WorkerConfig, "start", pickled_workers.start)
    spread = {"workers": 2, "load": make_model}

    def broken(items):
        for number, item in enumerate(items):
            if number == 5:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        probe(make_model(), documents, save=tmp_path, progress=broken, **spread, **OPTIONS)
    assert len(np.unique(ProbeResult.load(tmp_path).document)) == 5
    probe(make_model(), iter(documents), save=tmp_path, **spread, **OPTIONS)
    assert files(tmp_path) == whole
    in_memory = probe(make_model(), documents, **spread, **OPTIONS)
    for name, column in ProbeResult.load(tmp_path).columns.items():
        np.testing.assert_array_equal(in_memory.columns[name], column, err_msg=name)


def test_workers_read_out_with_the_lens(documents, monkeypatch):
    monkeypatch.setattr(WorkerConfig, "start", pickled_workers.start)
    model = make_model()
    expected = probe(model, documents[:3], heads=model.lens, statistics=["entropy"])
    result = probe(
        model, documents[:3], heads=model.lens, statistics=["entropy"], workers=1, load=make_model
    )
    np.testing.assert_array_equal(result.entropy, expected.entropy)


def test_another_model_in_workers_is_refused(documents, monkeypatch):
    monkeypatch.setattr(WorkerConfig, "start", pickled_workers.start)
    with pytest.raises(EepolicyError, match="load makes a model with another model, heads than"):
        probe(make_model(), documents, workers=1, load=make_other_model)
    model = make_model()
    heads = TunedLens.untrained(model.lens, range(1, LAYERS), width=32)
    with pytest.raises(EepolicyError, match="assign other heads to"):
        probe(model, documents, heads=heads, workers=1, load=make_model)


@pytest.mark.slow
def test_two_processes_write_the_same_files(whole, documents, tmp_path):
    probe(make_model(), documents, save=tmp_path, workers=2, load=make_model, **OPTIONS)
    assert files(tmp_path) == whole


@pytest.mark.slow
def test_a_ray_cluster_writes_the_same_files(whole, documents, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for the modules of the tests
    workers = WorkerConfig(1, ray="local")
    probe(make_model(), documents, save=tmp_path, workers=workers, load=make_model, **OPTIONS)
    assert files(tmp_path) == whole
