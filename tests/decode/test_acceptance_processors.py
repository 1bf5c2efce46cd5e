"""Verification of drafts that were sampled through logits processors which read earlier tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from conftest import LAYERS, LAYOUT, plain_lens, tiny
from scipy.stats import chisquare
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
)

from eepolicy import HookedModel
from eepolicy.decode.acceptance import AcceptAll, Drafts

PROMPT = torch.tensor([1, 7, 30])
PENALTY, TEMPERATURE = 3.0, 1.2
# without top_k, transformers keeps the 50 most likely tokens
OPTIONS = dict(repetition_penalty=PENALTY, temperature=TEMPERATURE, top_k=0)
DRAFTS = "both=static@2"


def processed(logits: Tensor, ids: Tensor, history: Tensor | None = None) -> Tensor:
    """Scores (rows, vocab) that the stock model samples from after ids (rows, tokens)."""
    stock = [RepetitionPenaltyLogitsProcessor(PENALTY), TemperatureLogitsWarper(TEMPERATURE)]
    return LogitsProcessorList(stock)(ids if history is None else history, logits)


@dataclass(frozen=True)
class Recorded(AcceptAll):
    """Accepts all drafts and keeps them."""

    verifies = True
    uses_draft_scores = True
    seen: list[Drafts] = field(default_factory=list)

    def next_state(self, drafts: Drafts, num_accepted: int) -> None:
        self.seen.append(drafts)


@pytest.mark.parametrize("max_pending", [1, 3])
def test_processors_see_all_tokens_before_each_draft(max_pending):
    """Scores of the exit and of the full model, by the stock model and stock processors."""
    model = tiny("llama", 3, torch.float64)
    hooked, rule = HookedModel(model, layout=LAYOUT), Recorded()
    options = dict(accept=rule, max_pending=max_pending, max_new_tokens=12, seed=2)
    out = hooked.generate(PROMPT, DRAFTS, **options, **OPTIONS)
    assert len(out.tokens) > 4
    ids = torch.cat([PROMPT, out.tokens])
    with torch.no_grad():
        result = model(ids[None], output_hidden_states=True)
        early = plain_lens(model, result.hidden_states[2])[0]
    targets, drafts = [], []
    for i in range(len(PROMPT), len(ids)):
        before = ids[None, :i]
        targets.append(processed(result.logits[:, i - 1].float(), before)[0])
        drafts.append(processed(early[None, i - 1].float(), before)[0])
    ours = {
        name: torch.cat([getattr(d, name) for d in rule.seen])
        for name in ("tokens", "target_scores", "draft_scores")
    }
    assert ours["tokens"].tolist() == out.tokens.tolist()
    torch.testing.assert_close(ours["target_scores"], torch.stack(targets), rtol=0, atol=1e-5)
    torch.testing.assert_close(ours["draft_scores"], torch.stack(drafts), rtol=0, atol=1e-5)
    assert len(rule.seen) > 1
    assert LAYERS not in out.trace.depth


@torch.no_grad()
def two_token_law(model, sees_drafts: bool) -> np.ndarray:
    """Probability of each pair of tokens, (vocab, vocab), by enumeration.

    Args:
        model: the stock model.
        sees_drafts: whether the processors of the second token see the first one.
    """
    first = processed(model(PROMPT[None]).logits[:, -1], PROMPT[None]).softmax(-1)[0]
    ids = torch.cat([PROMPT.expand(60, -1), torch.arange(60)[:, None]], 1)
    history = ids if sees_drafts else ids[:, :-1]
    second = processed(model(ids).logits[:, -1], ids, history).softmax(-1)
    law = first[:, None] * second
    law[LAYOUT.end] = 0
    law[LAYOUT.end, LAYOUT.end] = first[LAYOUT.end]  # the reply ended
    return law.numpy()


def statistics(pairs: np.ndarray) -> np.ndarray:
    """Weights of the second token and of repetitions of the first, from weights of pairs."""
    repeated = np.diag(pairs)
    return np.concatenate([pairs.sum(0) - repeated, [repeated.sum()]])


def fits(counts: np.ndarray, law: np.ndarray) -> float:
    """p of counts being drawn from a law, rare categories together."""
    expected = statistics(law) * counts.sum()
    common = expected >= 8
    counts, wanted = (
        np.array([*x[common], x[~common].sum()]) for x in (statistics(counts), expected)
    )
    return float(chisquare(counts, wanted * counts.sum() / wanted.sum()).pvalue)


@pytest.mark.parametrize(
    "accept",
    # `test_acceptance_laws.py` has the laws of all rules
    [
        "sampling",
        *(pytest.param(rule, marks=pytest.mark.slow) for rule in ("block", "tolerance:0")),
    ],
)
def test_lossless_sampling_through_a_repetition_penalty(accept):
    """Replies of two drafts that are verified together, against their enumerated law.

    A right rule fails with a probability of 1e-3 for one seed, and the seeds are fixed.
    """
    model = tiny("llama", 3)
    hooked = HookedModel(model, layout=LAYOUT)

    def counts(accept: str) -> np.ndarray:
        pairs = np.zeros((60, 60))
        for seed in range(32):
            options = dict(accept=accept, max_new_tokens=2, seed=seed)
            for out in hooked.generate([PROMPT] * 128, DRAFTS, **options, **OPTIONS):
                tokens = out.tokens.tolist()
                pairs[tokens[0], tokens[-1]] += 1
        return pairs

    law = two_token_law(model, sees_drafts=True)
    lossless = counts(accept)
    assert fits(lossless, law) > 1e-3
    # the test can fail: if the penalty misses drafts, and if drafts are not verified
    assert fits(lossless, two_token_law(model, sees_drafts=False)) < 1e-6
    if accept == "sampling":
        assert fits(counts("all"), law) < 1e-6
