"""The guarantee by simulation, the search on a model and ears that are simple."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import LAYOUT, tiny
from hypothesis import given
from hypothesis import strategies as st

from eepolicy import EepolicyError, HookedModel, parse_policy
from eepolicy.analysis.studies.policy_search import Allowed, chains, loss_exceeds, prompts_for, tune
from eepolicy.speech.units import Units


def drawn(rng, mean, shape):
    """Losses of -1, 0 and 1 with a mean: mostly nothing is lost."""
    return rng.choice([-1.0, 0.0, 1.0], shape, p=[0.05, 0.9 - mean, 0.05 + mean])


def test_a_loss_that_is_too_high_passes_no_more_often_than_promised():
    rng = np.random.default_rng(0)
    passed = [loss_exceeds(row, 0.03) <= 0.05 for row in drawn(rng, 0.03, (2000, 150))]
    assert np.mean(passed) <= 0.05 + 0.015  # three deviations of 2000 draws


def test_a_loss_that_is_low_passes_mostly():
    rng = np.random.default_rng(0)
    passed = [loss_exceeds(row, 0.10) <= 0.05 for row in drawn(rng, 0.0, (300, 150))]
    assert np.mean(passed) > 0.8  # measured 0.95


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=40), st.floats(-0.5, 0.5))
def test_a_higher_limit_is_never_harder_to_keep(losses, limit):
    p = loss_exceeds(losses, limit)
    assert 0 < p <= 1
    assert loss_exceeds([1.0] * len(losses), limit) == 1.0


def test_losing_nothing_passes_with_as_many_prompts_as_it_says():
    needed = prompts_for(0.03, 0.0167)
    assert loss_exceeds(np.zeros(needed), 0.03, 1 - 0.0167) <= 0.0167
    assert loss_exceeds(np.zeros(needed - 1), 0.03, 1 - 0.0167) > 0.0167
    with pytest.raises(EepolicyError, match="allow more"):
        prompts_for(0.0, 0.05, most=2000)


def test_chains_save_more_and_more():
    for chain in chains(20):
        depths = [parse_policy(s).exit_depth if "spark" in s else int(s[7:]) for s in chain]
        assert depths == sorted(depths, reverse=True)
        assert depths[-1] == 10


class Words:
    def __call__(self, text, add_special_tokens):
        return type("Encoding", (), {"input_ids": [5 + ord(c) % 15 for c in text]})

    def decode(self, ids):
        return "cat dog bird fish"


class Ears:
    """Hears the last word wrong where the speech is not the full model's."""

    def __init__(self, model, questions):
        outs = [model.generate(q["question"], max_new_tokens=15) for q in questions]
        self.known = [out.audio for out in outs]

    def transcribe(self, wave):
        same = any(wave.shape == w.shape and torch.equal(wave, w) for w in self.known)
        return "cat dog bird fish" if same else "cat dog bird cow"


class Deaf:
    """Of the same name as the ears above, so that it passes for them."""

    def transcribe(self, wave):
        raise AssertionError("what was heard before is not heard again")


Deaf.__name__ = "Ears"


def test_the_search_ends_each_chain_at_its_first_failure(tmp_path):
    codebook = torch.randn(40, 320, generator=torch.Generator().manual_seed(0))
    hooked = HookedModel(tiny("llama"), layout=LAYOUT, tokenizer=Words(), vocoder=Units(codebook))
    questions = [
        {"question": "ab" * (1 + i % 9) + "cdefg"[i % 5], "keys": ["fish"]} for i in range(40)
    ]
    ears = Ears(hooked, questions)

    def search(ears, **options):
        return tune(
            hooked,
            questions[:30],
            questions[30:],
            ears,
            Allowed(wer=0.6, accuracy=0.6, confidence=0.9),
            candidates=[["text=static@6", "static@2", "static@1"], ["static@3"]],
            max_new_tokens=15,
            **options,
        )

    def stop(line):
        if line.startswith("static@2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(ears, keep=tmp_path, report=stop)
    assert len(list(tmp_path.iterdir())) == 3  # full depth and two policies
    found = search(ears, keep=tmp_path)
    assert len(list(tmp_path.iterdir())) == 6  # one more policy, and the check of the best
    again = search(Deaf(), keep=tmp_path)
    assert again.tried.equals(found.tried)
    assert again.checked == found.checked
    assert found.tried.policy.tolist() == ["text=static@6", "static@2", "static@3"]
    assert found.tried.passed.tolist() == [True, False, False]
    assert found.best == "text=static@6"
    assert found.checked["wer_loss"] == found.checked["accuracy_loss"] == 0
    wrong = found.tried.wer_loss[1:]
    # one word of four is wrong wherever speech differs
    np.testing.assert_allclose(4 * wrong, found.tried.accuracy_loss[1:])
    assert "| `static@2` |" in found.table()
    with pytest.raises(EepolicyError, match="prompts or more"):
        tune(hooked, questions[:5], questions[30:], ears, Allowed(wer=0.1), max_new_tokens=30)
