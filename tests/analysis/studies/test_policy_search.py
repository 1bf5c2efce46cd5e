"""The guarantee by simulation, and the search on a tiny model with a stub recognizer."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import LAYOUT, tiny
from hypothesis import given
from hypothesis import strategies as st

from eepolicy import EepolicyError, HookedModel, parse_policy
from eepolicy.analysis.studies.base import BatchOptions
from eepolicy.analysis.studies.batch_scores import BatchScorer
from eepolicy.analysis.studies.policy_search import (
    LossBudget,
    PolicyEvaluator,
    loss_p_value,
    min_prompts,
    policy_chains,
    search_policies,
)
from eepolicy.speech.units import Units
from eepolicy.workers import ProcessWorkers


def losses_of(rng, mean, shape):
    """Losses of -1, 0 and 1 with a mean; most are 0."""
    return rng.choice([-1.0, 0.0, 1.0], shape, p=[0.05, 0.9 - mean, 0.05 + mean])


def test_a_loss_that_is_too_high_passes_no_more_often_than_guaranteed():
    rng = np.random.default_rng(0)
    passed = [loss_p_value(row, 0.03) <= 0.05 for row in losses_of(rng, 0.03, (2000, 150))]
    assert np.mean(passed) <= 0.05 + 0.015  # three deviations of 2000 draws


def test_a_loss_that_is_low_passes_mostly():
    rng = np.random.default_rng(0)
    passed = [loss_p_value(row, 0.10) <= 0.05 for row in losses_of(rng, 0.0, (300, 150))]
    assert np.mean(passed) > 0.8  # measured 0.95


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=40), st.floats(-0.5, 0.5))
def test_p_values_are_in_range(losses, limit):
    p = loss_p_value(losses, limit)
    assert 0 < p <= 1
    assert loss_p_value([1.0] * len(losses), limit) == 1.0


def test_min_prompts_is_the_smallest_number_that_passes():
    needed = min_prompts(0.03, 0.0167)
    assert loss_p_value(np.zeros(needed), 0.03, 1 - 0.0167) <= 0.0167
    assert loss_p_value(np.zeros(needed - 1), 0.03, 1 - 0.0167) > 0.0167
    with pytest.raises(EepolicyError, match="allow more"):
        min_prompts(0.0, 0.05, maximum=2000)


def test_chains_are_ordered_by_savings():
    for chain in policy_chains(20):
        depths = [parse_policy(s).exit_depth if "spark" in s else int(s[7:]) for s in chain]
        assert depths == sorted(depths, reverse=True)
        assert depths[-1] == 10


class Words:
    def __call__(self, text, add_special_tokens):
        return type("Encoding", (), {"input_ids": [5 + ord(c) % 15 for c in text]})

    def decode(self, ids):
        return "cat dog bird fish"


class Recognizer:
    """Gets the last word wrong if the speech is not the full model's."""

    def __init__(self, model, questions):
        outs = [model.generate(q["question"], max_new_tokens=15) for q in questions]
        self.known = [out.audio for out in outs]

    def transcribe(self, wave):
        same = any(wave.shape == w.shape and torch.equal(wave, w) for w in self.known)
        return "cat dog bird fish" if same else "cat dog bird cow"


class Silent:
    """A recognizer that must not be called; it has the name, and so the identity, of the other."""

    def transcribe(self, wave):
        raise AssertionError("stored transcripts are not computed again")


Silent.__name__ = "Recognizer"


@pytest.mark.slow
def test_the_search_ends_each_chain_at_its_first_failure(tmp_path):
    codebook = torch.randn(40, 320, generator=torch.Generator().manual_seed(0))
    hooked = HookedModel(tiny("llama"), layout=LAYOUT, tokenizer=Words(), vocoder=Units(codebook))
    questions = [
        {"question": "ab" * (1 + i % 9) + "cdefg"[i % 5], "keys": ["fish"]} for i in range(40)
    ]
    asr = Recognizer(hooked, questions)
    short = BatchOptions(max_new_tokens=15)

    def search(asr, **options):
        return search_policies(
            PolicyEvaluator(hooked, asr, tmp_path, short),
            questions[:30],
            questions[30:],
            LossBudget(wer=0.6, accuracy=0.6, confidence=0.9),
            candidates=[["text=static@6", "static@2", "static@1"], ["static@3"]],
            **options,
        )

    def stop(line):
        if line.startswith("static@2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(asr, report=stop)
    assert len(list(tmp_path.iterdir())) == 3  # full depth and two policies
    result = search(asr)
    assert len(list(tmp_path.iterdir())) == 6  # one more policy, and the check of the best
    again = search(Silent())
    assert again.tried.equals(result.tried)
    assert again.checked == result.checked
    assert result.tried.policy.tolist() == ["text=static@6", "static@2", "static@3"]
    assert result.tried.passed.tolist() == [True, False, False]
    assert result.best == "text=static@6"
    assert result.checked["wer_loss"] == result.checked["accuracy_loss"] == 0
    wrong = result.tried.wer_loss[1:]
    # one word of four is wrong where the speech differs
    np.testing.assert_allclose(4 * wrong, result.tried.accuracy_loss[1:])
    assert "| `static@2` |" in result.table()
    lines = result.figure().axes[0].get_lines()
    assert [line.get_xdata()[0] for line in lines] == result.tried.calls.tolist()
    with pytest.raises(EepolicyError, match="prompts or more"):
        search_policies(
            PolicyEvaluator(hooked, asr), questions[:5], questions[30:], LossBudget(wer=0.1)
        )


class Backwards(ProcessWorkers):
    """Finishes the last item first, in this process."""

    def next(self):
        self._items = dict(reversed(self._items.items()))
        return super().next()


def test_scores_do_not_depend_on_the_order_of_the_workers():
    codebook = torch.randn(40, 320, generator=torch.Generator().manual_seed(0))
    hooked = HookedModel(tiny("llama"), layout=LAYOUT, tokenizer=Words(), vocoder=Units(codebook))
    questions = [{"question": "ab" * (1 + i), "keys": ["fish"]} for i in range(6)]
    asr, options = Recognizer(hooked, questions), BatchOptions(size=2, max_new_tokens=15)
    expected = PolicyEvaluator(hooked, asr, options=options).scores("static@3", questions)
    own = BatchScorer(hooked, asr, options.max_new_tokens)
    with Backwards(lambda: own, 0, own) as workers:
        evaluator = PolicyEvaluator(hooked, asr, options=options, workers=workers)
        scores = evaluator.scores("static@3", questions)
    assert scores.tokens.nunique() > 1 or scores.calls.nunique() > 1
    pd.testing.assert_frame_equal(scores, expected)
