"""One depth after another: the heads of the fit of all depths, resumed, and in less memory."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from conftest import LAYOUT, tiny

from eepolicy import Document, EepolicyError, HookedModel
from eepolicy.fitting import FitConfig, fit, fit_by_depth, generate_replies
from eepolicy.fitting import depth_fit as module

CONFIG = FitConfig("linear", depths=(1, 2, 3), epochs=2, patience=9, batch_tokens=40)


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return HookedModel(tiny("llama"), LAYOUT)


@pytest.fixture(scope="module")
def replies(model) -> list[Document]:
    prompts = [
        torch.randint(60, (5,), generator=torch.Generator().manual_seed(i)) for i in range(6)
    ]
    return generate_replies(model, prompts, max_new_tokens=20)


@pytest.mark.filterwarnings("ignore:the KL from the last layer fell")
@pytest.mark.parametrize("kind", [CONFIG.kind, "low-rank"])
def test_the_heads_are_those_of_one_fit(kind, model, replies, tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, kind=kind, rank=4)  # `low-rank` starts at random
    together = fit(model, replies[:4], replies[4:], config)
    fitted: list[tuple[int, ...]] = []
    real = module.fit

    def counted(*args, **options):
        fitted.append(args[3].depths)
        if len(fitted) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(module, "fit", counted)
    with pytest.raises(KeyboardInterrupt):
        fit_by_depth(model, replies[:4], replies[4:], config, tmp_path)
    result = fit_by_depth(model, replies[:4], replies[4:], config, tmp_path)
    assert fitted == [(1,), (2,), (2,), (3,)]  # the finished depth is read
    assert result.heads.depths == together.heads.depths
    state, expected = result.heads.state_dict(), together.heads.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name
    for when in ("before", "after"):
        for name, values in together.notes[when].items():
            assert result.notes[when][name] == pytest.approx(values, abs=1e-6)
    assert result.notes["epochs"] == together.notes["epochs"]


def test_a_folder_of_another_fit_is_refused(model, replies, tmp_path):
    one = dataclasses.replace(CONFIG, depths=(2,), epochs=1)
    fit_by_depth(model, replies[:4], replies[4:], one, tmp_path)
    for train, config in ((replies[:3], one), (replies[:4], CONFIG)):
        with pytest.raises(EepolicyError, match="belongs to a fit with another model, other repl"):
            fit_by_depth(
                model, train, replies[4:], dataclasses.replace(config, depths=(2,)), tmp_path
            )
    rounded = HookedModel(copy.deepcopy(model.model).bfloat16(), layout=model.layout)
    with pytest.raises(EepolicyError, match="belongs to a fit with another model, other repl"):
        fit_by_depth(rounded, replies[:4], replies[4:], one, tmp_path)


def test_sampled_replies_are_those_of_the_options(model, tmp_path):
    prompts = [torch.arange(n, n + 5) for n in range(4)]
    file = tmp_path / "replies.jsonl"
    sampling = {"temperature": 2.0, "windowed_repetition_penalty": {"penalty": 1.1, "window": 3}}
    options = {"max_new_tokens": 12, "batch": 2, "sampling": sampling}
    greedy = generate_replies(model, prompts, max_new_tokens=12)
    sampled = generate_replies(model, prompts, save=file, **options)
    tokens = [d.tokens.tolist() for d in sampled]
    assert tokens != [d.tokens.tolist() for d in greedy]
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:4]))  # stopped in the second batch
    again = generate_replies(model, prompts, save=file, **options)
    assert [d.tokens.tolist() for d in again] == tokens
    with pytest.raises(EepolicyError, match="has replies of another model, or to other questions"):
        generate_replies(model, prompts, max_new_tokens=12, batch=2, save=file)
