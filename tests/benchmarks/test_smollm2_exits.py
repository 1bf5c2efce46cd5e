"""The benchmark of a fitted branch and drafter, on a small random model."""

from __future__ import annotations

import torch
from conftest import tiny

from benchmarks import smollm2_exits
from benchmarks.smollm2_exits import HELD_OUT_SUBJECTS, REQUESTS, SUBJECTS, contenders, prompts
from eepolicy import HookedModel
from eepolicy.analysis.timing.contenders import BenchConfig
from eepolicy.analysis.timing.runner import Bench
from eepolicy.heads import BranchHead, DrafterHead


def test_timed_prompts_are_not_those_of_the_fit():
    fitted, timed = prompts(SUBJECTS), prompts(HELD_OUT_SUBJECTS)
    assert len(set(fitted)) == len(SUBJECTS) * len(REQUESTS)
    assert not {*fitted} & {*timed}
    assert "Explain bread to a child." in fitted


def test_every_method_decodes_with_heads_of_two_files(tmp_path, monkeypatch):
    model = HookedModel(tiny("llama"))
    for kind, depth in ((BranchHead, 2), (DrafterHead, 0)):
        heads = kind.untrained(model.lens, [depth], width=32, num_layers=1)
        heads.save(tmp_path / kind.name, model.model, {})
    monkeypatch.setattr(smollm2_exits.eepolicy, "load", lambda folder, threads: model)
    files = [tmp_path / "branch", tmp_path / "drafter"]
    assert smollm2_exits.model_of("folder", files).heads.branch_depths == (0, 2)
    bench = Bench(model, [torch.arange(5, 12)], BenchConfig(6, exact_length=True))
    *ours, stock, speculation = contenders(bench, 2, [2])[:6]
    full, chain, verified, exits = (c.decode(list(bench.prompts)).traces[0] for c in ours)
    assert [len(trace) for trace in (full, chain, verified, exits)] == [6] * 4
    assert full.branch_calls.sum() == 0 < chain.branch_calls.sum()
    assert verified.branch_calls.sum() > 0 < exits.branch_calls.sum()
    assert stock.decode(list(bench.prompts)).tokens == 6
    assert speculation.name == "stock assistant_early_exit=2"
