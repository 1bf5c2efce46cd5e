"""Drafts at depth 0, against a plain loop over stock layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import FAMILIES, LAYERS, LAYOUT, layers_of, tiny
from decoding import PROMPTS
from torch import Tensor

from eepolicy import EepolicyError, HookedModel
from eepolicy.heads import DrafterHead, FittedHead, TunedLens
from eepolicy.policies import Draft, parse_policy
from eepolicy.testing.models import LayerCounter

NEW = 12


@torch.no_grad()
def with_drafter(model, num_layers: int = 1, agrees: bool = False) -> HookedModel:
    """A hooked model in float64 with a drafter.

    With `agrees`, layers change the embedding little and the drafter reads the embedding alone, so
    many drafts are right.
    """
    if agrees:
        for layer in layers_of(model):
            for parameter in layer.parameters():
                if parameter.ndim > 1:
                    parameter *= 0.3
    hooked = HookedModel(model.to(torch.float64), layout=LAYOUT)
    drafter = DrafterHead.untrained(hooked.lens, (0,), width=32, num_layers=num_layers).at(0)
    heads = FittedHead({0: drafter, 3: TunedLens.untrained(hooked.lens, (3,), width=32).at(3)})
    heads.to(torch.float64)
    generator = torch.Generator().manual_seed(7)
    if agrees:
        drafter.mix.weight.copy_(torch.cat([torch.zeros(32, 32), torch.eye(32)], 1))
    else:
        for name, parameter in drafter.named_parameters():
            if "norm" in name:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    hooked.heads = heads
    return hooked


@torch.no_grad()
def draft_logits(hooked: HookedModel, ids: Tensor, start: int) -> list[Tensor]:
    """Logits of the drafter after `ids[: start + 1]`, then one token more each time.

    Positions before `start` and `start` itself follow states of the full model; later ones follow
    the drafter's own.  No cache: the drafter's layers run over the whole text each time.
    """
    drafter = hooked.heads.at(0)
    embedding = hooked.model.get_input_embeddings()(ids[None])
    if hooked.parts.position_embedding is not None:
        embedding = embedding + hooked.parts.position_embedding(torch.arange(len(ids))[None])
    *_, full = hooked.hidden_states(ids[None])
    previous = torch.cat([torch.zeros_like(full[:, :1]), full[:, :-1]], 1)
    logits = []
    for newest in range(start, len(ids)):
        inputs = drafter.inputs(previous[:, : newest + 1], embedding[:, : newest + 1])
        states = hooked.branch_states(inputs, 0)
        logits.append(drafter.logits(states, 0)[0, -1])
        if newest + 1 < len(ids):
            previous[:, newest + 1] = states[:, -1]
    return logits


def test_a_chain_of_drafts_is_that_of_a_plain_loop(family):
    hooked = with_drafter(tiny(family), num_layers=2, agrees=True)
    prompts = PROMPTS[:2]
    plain = [o.tokens for o in hooked.generate(prompts, max_new_tokens=NEW)]
    policy = Draft(3, on="both")
    for prompt, tokens in zip(prompts, plain, strict=True):
        expected, ids = [], torch.cat([prompt, tokens])
        # the policy drafts three tokens, and the full model keeps those that are its own
        start = len(prompt) - 1
        while start < len(ids) - 1:
            guess, number, chain = ids[: start + 1], 0, []
            while number < 3 and start + number < len(ids) - 1:
                token = draft_logits(hooked, guess, start)[-1].argmax()
                chain.append(bool(token == ids[start + number + 1]))
                guess = torch.cat([guess, token[None]])
                number += 1
                if int(token) == 4:
                    break
            good = next((i for i, ok in enumerate(chain) if not ok), len(chain))
            expected += [0] * good + [LAYERS]
            start += good + 1
        out = hooked.generate(prompt, policy, NEW, accept="exact")
        assert out.tokens.tolist() == tokens.tolist()
        kept = expected[: len(tokens)]
        # a chain that the end of the reply cuts is verified at once
        assert out.trace.depth.tolist()[: len(kept) - 4] == kept[: len(kept) - 4]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", ["both=draft:3", "draft:2", "both=draft:confidence>0.1"])
@pytest.mark.parametrize("accept", ["exact", "sampling", "block"])
def test_replies_with_drafts_are_the_full_models_in_batches_too(family, policy, accept):
    hooked = with_drafter(tiny(family), agrees=True)
    plain = hooked.generate(PROMPTS, max_new_tokens=NEW)
    together = hooked.generate(PROMPTS, policy, NEW, accept=accept)
    assert [o.tokens.tolist() for o in together] == [o.tokens.tolist() for o in plain]
    for prompt, out in zip(PROMPTS, together, strict=True):
        with LayerCounter(hooked.model, hooked.heads) as counter:
            alone = hooked.generate(prompt, policy, NEW, accept=accept)
        assert alone.trace.depth.tolist() == out.trace.depth.tolist()
        assert alone.trace.branch_calls.tolist() == out.trace.branch_calls.tolist()
        assert alone.trace.layer_calls.tolist() == out.trace.layer_calls.tolist()
        assert alone.trace.layer_positions.tolist() == out.trace.layer_positions.tolist()
        assert alone.trace.branch_calls.sum() == len(counter.branch_calls)


def test_a_draft_runs_no_layer_of_the_model():
    hooked = with_drafter(tiny("llama"), agrees=True)
    with LayerCounter(hooked.model, hooked.heads) as counter:
        out = hooked.generate(PROMPTS[0], "both=draft:3", NEW, accept="exact")
    trace = out.trace
    drafted = trace.draft_status == 1
    assert drafted.any()
    assert trace.depth[drafted].max() == 0
    # the end of the reply verifies the last chain, which the last draft pays for
    before = drafted & (np.arange(len(trace)) < np.flatnonzero(trace.depth == LAYERS)[-1])
    assert before.any()
    assert trace.layer_calls[before].tolist() == [1] * before.sum()
    # each verification runs all layers once, on the drafts and the newest position
    steps = len(counter.calls) - trace.prefill_layer_calls
    assert steps % LAYERS == 0
    widths = [columns for index, _, columns in counter.calls if index == 0]
    assert max(widths[1:]) == 4


def test_depth_0_needs_a_drafter_and_a_rule_that_verifies():
    hooked = HookedModel(tiny("llama"), layout=LAYOUT)
    with pytest.raises(EepolicyError, match=r"gave depth 0, but the .* 1 to 6.*draft"):
        hooked.generate(PROMPTS[0], "both=draft:3", NEW, accept="exact")
    with pytest.raises(EepolicyError, match="use it with accept='exact'"):
        hooked.generate(PROMPTS[0], "both=draft:3", NEW)
    with pytest.raises(EepolicyError, match="limits its drafts itself"):
        hooked.generate(PROMPTS[0], "both=draft:3", NEW, accept="exact", max_pending=2)
    with pytest.raises(EepolicyError, match="drafts at depth 6; a model of 6 layers drafts at"):
        hooked.generate(PROMPTS[0], "both=draft:3@6", NEW, accept="exact")


def test_spec_strings():
    for spec, policy in {
        "draft:5": Draft(5),
        "both=draft:12": Draft(12, on="both"),
        "draft:confidence>0.4": Draft(8, 0.4),
        "draft:3:confidence>0.25@4": Draft(3, 0.25, 4),
    }.items():
        assert parse_policy(spec) == policy
        assert policy.spec == spec
    for wrong in ("draft", "draft:", "draft:confidence<0.4", "draft:0", "draft:confidence>1"):
        with pytest.raises(EepolicyError):
            parse_policy(wrong).check(20)


def test_sampled_drafts_have_the_distribution_of_the_full_model():
    """Two tokens after the prompt, with a repetition penalty, against the enumerated law."""
    hooked = with_drafter(tiny("llama"), agrees=True)
    options = {"do_sample": True, "temperature": 0.5, "top_k": 4, "repetition_penalty": 1.4}
    count, prompt = 3000, PROMPTS[1]
    seen: dict[tuple[int, ...], int] = {}
    rows = [prompt] * 500
    for seed in range(count // 500):
        outputs = hooked.generate(
            rows, "both=draft:2", 2, accept="sampling", seed=seed, min_new_tokens=2, **options
        )
        for out in outputs:
            key = tuple(out.tokens.tolist())
            seen[key] = seen.get(key, 0) + 1
    law: dict[tuple[int, ...], float] = {}
    for first, p in next_law(hooked, prompt, options).items():
        more = next_law(hooked, torch.cat([prompt, torch.tensor([first])]), options)
        for second, q in more.items():
            law[first, second] = p * q
    assert seen.keys() <= law.keys()
    # half the sum of the differences; 3,000 draws from the law itself have up to 0.04 (measured)
    distance = sum(abs(seen.get(key, 0) / count - p) for key, p in law.items()) / 2
    assert distance < 0.05


@torch.no_grad()
def next_law(hooked: HookedModel, ids: Tensor, options: dict) -> dict[int, float]:
    """Probabilities of the next token by the stock model and the processors' definitions."""
    logits = hooked.model(ids[None]).logits[0, -1].clone()
    for token in {*ids.tolist()}:
        penalty = options["repetition_penalty"]
        logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
    logits[4] = -torch.inf  # min_new_tokens
    logits = logits / options["temperature"]
    best = logits.topk(options["top_k"])
    return dict(zip(best.indices.tolist(), best.values.softmax(-1).tolist(), strict=True))
