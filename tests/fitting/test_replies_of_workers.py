"""Replies that worker processes generate are those of one process."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import LAYOUT, tiny

from eepolicy import EepolicyError, HookedModel
from eepolicy.fitting import generate_replies
from eepolicy.fitting.replies import Exits, Generation, replies_with

PROMPTS = [torch.arange(3 + n % 4) + n for n in range(9)]


def make_model() -> HookedModel:
    return HookedModel(tiny("llama"), LAYOUT)


@pytest.mark.slow
def test_replies_of_two_workers(tmp_path):
    model, options = make_model(), {"max_new_tokens": 12, "batch": 2}
    expected = generate_replies(model, PROMPTS, **options)
    threads = torch.get_num_threads()
    file = tmp_path / "replies.jsonl"
    replies = generate_replies(model, PROMPTS, save=file, workers=2, load=make_model, **options)
    assert [r.tokens.tolist() for r in replies] == [r.tokens.tolist() for r in expected]
    assert file.read_text().count("\n") == 1 + len(PROMPTS)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("other", ["dtype", "layout"])
def test_replies_of_another_model_are_not_continued(tmp_path, other):
    prompts, file = [torch.tensor([5, 7, 9]), torch.tensor([8, 6])], tmp_path / "replies.jsonl"
    model = HookedModel(tiny("llama"), layout=LAYOUT)
    generate_replies(model, prompts, max_new_tokens=5, save=file)
    assert len(generate_replies(model, prompts, max_new_tokens=5, save=file)) == 2
    if other == "dtype":
        model = HookedModel(tiny("llama", dtype=torch.bfloat16), layout=LAYOUT)
    else:
        layout = dataclasses.replace(LAYOUT, speech_chunk=LAYOUT.speech_chunk + 1)
        model = HookedModel(tiny("llama"), layout=layout)
    with pytest.raises(EepolicyError, match="has replies of another model"):
        generate_replies(model, prompts, max_new_tokens=5, save=file)


def test_workers_need_a_loader():
    with pytest.raises(EepolicyError, match="give load"):
        replies_with(make_model(), PROMPTS, Exits(), Generation(4, batch=2, workers=1))
