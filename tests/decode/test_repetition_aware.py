"""Repetition-aware sampling against the two draws of its authors, written out."""

from __future__ import annotations

import pytest
import torch
from conftest import LAYOUT, tiny
from torch import Tensor
from transformers import LogitsProcessorList

from eepolicy import EepolicyError, HookedModel
from eepolicy.decode.repetition_aware import (
    RepetitionAware,
    RepetitionAwareLogitsProcessor,
)

WORDS = 12


def two_draws(scores: Tensor, reply: list[int], options: RepetitionAware) -> int:
    """A token as the authors draw it: from the nucleus, and again if it is repeated."""
    ordered = sorted(range(len(scores)), key=lambda i: -float(scores[i]))
    probabilities = scores.softmax(0)
    nucleus, total = [], 0.0
    for token in ordered:
        if total >= options.top_p or len(nucleus) == options.top_k:
            break
        nucleus.append(token)
        total += float(probabilities[token])
    token = nucleus[int(torch.multinomial(probabilities[nucleus], 1))]
    if reply[-options.window :].count(token) >= options.window * options.ratio:
        others = scores.clone()
        others[token] = -torch.inf
        token = int(torch.multinomial(others.softmax(0), 1))
    return token


def exact(scores: Tensor, reply: list[int], options: RepetitionAware) -> Tensor:
    """Probabilities of `two_draws`: (vocab,), summed over all first draws."""
    full = scores.double().softmax(0).tolist()
    ordered = sorted(range(len(full)), key=lambda i: -full[i])
    nucleus = [
        token
        for rank, token in enumerate(ordered)
        if rank < options.top_k and sum(full[t] for t in ordered[:rank]) < options.top_p
    ]
    weight = sum(full[token] for token in nucleus)
    result = [0.0] * len(full)
    for first in nucleus:
        share = full[first] / weight
        if reply[-options.window :].count(first) < options.window * options.ratio:
            result[first] += share
            continue
        for second in range(len(full)):
            if second != first:
                result[second] += share * full[second] / (1 - full[first])
    return torch.tensor(result)


OPTIONS = [
    RepetitionAware(),
    RepetitionAware(top_p=0.5, top_k=3, window=4, ratio=0.5),
    RepetitionAware(top_p=1.0, top_k=1, window=3, ratio=1.0),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_the_distribution_is_that_of_two_draws(options):
    torch.manual_seed(0)
    process = RepetitionAwareLogitsProcessor(options, prompt_length=3)
    changed = 0
    for length in range(14):
        ids = torch.randint(0, WORDS, (3, 3 + length))
        ids[0, 3:] = 5  # a reply that repeats one token
        scores = 3 * torch.randn(3, WORDS)
        scores[:, 5] += 3
        ours = process(ids, scores.clone()).exp()
        for row in range(3):
            expected = exact(scores[row], ids[row, 3:].tolist(), options)
            torch.testing.assert_close(ours[row], expected, rtol=0, atol=1e-6)
            changed += not torch.allclose(expected, exact(scores[row], [], options), atol=1e-3)
    assert changed >= 5


def test_the_written_out_draws_have_these_probabilities():
    torch.manual_seed(0)
    scores, reply = 2 * torch.randn(WORDS), [3, 4, 4, 0]
    scores[4] = scores.max() + 1
    options = RepetitionAware(top_p=0.9, top_k=6, window=4, ratio=0.5)
    count = 2000
    drawn = torch.tensor([two_draws(scores, reply, options) for _ in range(count)])
    expected = exact(scores, reply, options)
    spread = (expected * (1 - expected) / count).sqrt()
    assert (expected > 0).sum() == WORDS - 1  # the repeated token is never drawn
    shares = drawn.bincount(minlength=WORDS) / count
    assert bool(((shares - expected).abs() <= 4 * spread).all())


def test_a_repeated_token_of_probability_one_is_replaced():
    scores = torch.tensor([[100.0, 0.0, 1.0]])
    process = RepetitionAwareLogitsProcessor(RepetitionAware(), prompt_length=0)
    ours = process(torch.tensor([[0]]), scores)
    torch.testing.assert_close(ours.exp()[0, 1:], torch.tensor([0.0, 1.0]).softmax(0))


def test_generate_samples_as_the_stock_generate_with_the_processor():
    model = HookedModel(tiny("qwen2"), LAYOUT)
    prompt = torch.tensor([7, 21, 22, 23])  # repeats in a prompt with speech do not count
    options = RepetitionAware(top_k=4, window=6, ratio=0.3)
    own = {"max_new_tokens": 30, "min_new_tokens": 20, "seed": 3}
    out = model.generate(prompt, repetition_aware=vars(options), **own)
    torch.manual_seed(3)
    stock = model.model.generate(
        prompt[None],
        do_sample=True,
        top_k=0,
        max_new_tokens=30,
        min_new_tokens=20,
        eos_token_id=LAYOUT.end,
        pad_token_id=0,
        logits_processor=LogitsProcessorList([RepetitionAwareLogitsProcessor(options, 4)]),
    )
    assert out.sequences.tolist() == stock.tolist()
    assert len(out.tokens) >= 20
    other = model.generate(prompt, repetition_aware=True, **own)
    assert other.tokens.tolist() != out.tokens.tolist()


def test_rows_of_a_padded_batch_and_verified_drafts():
    model = HookedModel(tiny("qwen2"), LAYOUT)
    prompts = [torch.tensor([7, 21, 22, 23]), torch.tensor([9, 25])]
    outs = model.generate(prompts, max_new_tokens=12, repetition_aware={"top_k": 1}, seed=1)
    # one candidate, and a repeated one is drawn again: the first token is the most likely one
    for prompt, out in zip(prompts, outs, strict=True):
        assert out.tokens[0] == model.model(prompt[None]).logits[0, -1].argmax()
    out = model.generate(
        prompts[0], "both=static@2", 20, accept="sampling", repetition_aware=True, seed=1
    )
    assert set(out.trace.depth.tolist()) > {2}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"repetition_aware": 3}, "repetition_aware is True or a dict with top_p, top_k, window"),
        ({"repetition_aware": {"k": 3}}, "repetition_aware is True or a dict with"),
        ({"repetition_aware": {"top_p": 2.0}}, "top_p and ratio are above 0 and at most 1"),
        ({"repetition_aware": {"window": 0}}, "top_k and window are integers of at least 1"),
        ({"repetition_aware": True, "top_p": 0.9}, "top_p does not go with repetition_aware"),
        ({"repetition_aware": True, "do_sample": False}, "repetition_aware samples"),
    ],
)
def test_what_is_refused(options, match):
    model = HookedModel(tiny("qwen2"), LAYOUT)
    with pytest.raises(EepolicyError, match=match):
        model.generate(torch.tensor([7, 8]), **options)


def test_a_repeated_token_stays_where_no_other_is_allowed():
    process = RepetitionAwareLogitsProcessor(RepetitionAware(), 0)
    scores = torch.tensor([[1.0, -torch.inf, -torch.inf]])
    assert process(torch.tensor([[0]]), scores).exp().tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize("name", ["temperature", "top_h", "min_p", "typical_p", "eta_cutoff"])
def test_other_warpers_are_refused(name):
    model = HookedModel(tiny("llama"), layout=LAYOUT)
    with pytest.raises(EepolicyError, match=f"{name} does not go with repetition_aware"):
        model.generate(torch.tensor([1, 2]), repetition_aware=True, **{name: 0.5})


def test_warpers_of_the_model_are_ignored():
    """The rule has its own nucleus; `min_p` of the model would restrict its two draws."""
    replies = []
    for value in (None, 0.5):
        stock = tiny("llama")
        stock.generation_config.min_p = value
        model = HookedModel(stock, LAYOUT)
        out = model.generate(
            torch.tensor([5, 9, 13]), max_new_tokens=30, repetition_aware=True, seed=3
        )
        replies.append(out.tokens.tolist())
    assert replies[0] == replies[1]


@pytest.mark.parametrize("name", ["top_k", "window"])
def test_counts_are_integers(name):
    with pytest.raises(EepolicyError, match="are integers of at least 1"):
        RepetitionAware(**{name: 2.5})
