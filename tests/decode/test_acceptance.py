"""Acceptance rules, from lossless ones to SPAR-K, and their costs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import FAMILIES, LAYERS, LAYOUT, tiny
from decoding import PROMPTS, LayerCounter, RandomDepths
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency

from eepolicy import EepolicyError, HookedModel
from eepolicy.decode import acceptance
from eepolicy.decode.acceptance import (
    AcceptAcoustic,
    AcceptExact,
    AcceptRatio,
    AcceptSampling,
    AcceptTop,
    Drafts,
    parse_acceptance,
)
from eepolicy.decode.config import EarlyExitConfig
from eepolicy.heads import ExitHead
from eepolicy.speech.units import Units
from eepolicy.testing.sizes import VOCAB

CASES = dict(
    family=st.sampled_from(FAMILIES),
    seed=st.integers(0, 10_000),
    rows=st.integers(1, len(PROMPTS)),
    cap=st.sampled_from([None, 1, 3]),
)


@settings(max_examples=10)
@given(**CASES)
def test_exact_gives_the_full_models_greedy_tokens(family, seed, rows, cap):
    """Whatever the policy: any depth at any position, alone and in ragged batches."""
    check_exact(family, seed, rows, cap)


@pytest.mark.exhaustive
@settings(max_examples=40)
@given(**CASES)
def test_exact_gives_greedy_tokens_in_more_cases(family, seed, rows, cap):
    check_exact(family, seed, rows, cap)


def check_exact(family, seed, rows, cap):
    model = tiny(family, seed % 7)
    hooked = HookedModel(model, layout=LAYOUT)
    options = dict(max_pending=cap, accept="exact", max_new_tokens=16)
    with LayerCounter(model) as counter:
        outs = hooked.generate(PROMPTS[:rows], RandomDepths(seed), **options)
    for prompt, out in zip(PROMPTS, outs, strict=False):
        expected = model.generate(
            prompt[None],
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=16,
            do_sample=False,
        )[0, len(prompt) :]
        assert out.tokens.tolist() == expected.tolist()
        early = out.trace.depth < LAYERS
        assert (out.trace.draft_status[early] == 1).all()
        assert (out.trace.depth[out.trace.draft_status == 2] == LAYERS).all()
    # the costs include those of rejected drafts
    decoded = counter.calls[outs[0].trace.prefill_layer_calls :]
    paid = sum(out.trace.layer_calls.sum() for out in outs)
    assert paid == sum(taking_part for _, taking_part, _ in decoded)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("accept", ["exact", "ratio:0.5"])
def test_a_judged_row_does_not_depend_on_its_neighbours(hooked, accept):
    """Tokens, depths, verdicts and costs, though neighbours drop other columns."""
    options = dict(max_new_tokens=24, accept=accept, max_pending=3)
    together = hooked.generate(PROMPTS, "both=static@2", **options)
    assert any(len(set(o.trace.draft_status.tolist())) == 2 for o in together)
    for prompt, out in zip(PROMPTS, together, strict=True):
        alone = hooked.generate(prompt, "both=static@2", **options)
        for name, value in vars(alone.trace).items():
            if name != "prefill_layer_calls":
                assert np.array_equal(getattr(out.trace, name), value), name


def test_drafts_of_several_rows_are_verified_together(stock, hooked):
    """Rows that are alike cost no more blocks and no more head calls than one of them."""
    options = dict(max_new_tokens=20, accept="exact", max_pending=3)
    counts = []
    for rows in (1, 3):
        heads = []
        handle = stock.lm_head.register_forward_pre_hook(lambda *_, heads=heads: heads.append(1))
        with LayerCounter(stock) as counter:
            hooked.generate([PROMPTS[0]] * rows, "both=static@2", **options)
        handle.remove()
        counts.append((len(counter.calls), len(heads)))
        assert {taking_part for _, taking_part, _ in counter.calls} == {rows}
    assert counts[0] == counts[1]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("policy", ["spark:triple@2", "both=static@1"])
def test_the_strictest_rules_equal_exact_and_the_laxest_equal_all(stock, policy):
    codebook = torch.randn(40, 320, generator=torch.Generator().manual_seed(0))
    hooked = HookedModel(stock, layout=LAYOUT, vocoder=Units(codebook))

    def tokens(accept):
        options = dict(max_new_tokens=16, accept=accept)
        return [o.tokens.tolist() for o in hooked.generate(PROMPTS, policy, **options)]

    exact, spark = tokens("exact"), tokens("all")
    assert spark != exact
    for strict in ("ratio:1", "top:1", "acoustic:0"):
        assert tokens(strict) == exact, strict
    for lax in ("ratio:0", "top:60"):
        assert tokens(lax) == spark, lax


def test_speculative_sampling_is_the_full_models_distribution():
    """The rule alone, 200,000 times on a vocabulary of five."""
    generator = torch.Generator().manual_seed(0)
    p, q = torch.tensor([[0.5, 0.3, 0.1, 0.1, 0.0], [0.1, 0.2, 0.1, 0.2, 0.4]])
    count = 200_000
    tokens = torch.multinomial(q, count, replacement=True, generator=generator)
    drafts = Drafts(
        tokens,
        *(x.log().expand(count, 5) for x in (p, q)),
        True,
        torch.rand(count, generator=generator),
    )
    kept = AcceptSampling().accepts(drafts)
    residual = AcceptSampling().replacement_scores(drafts, 0).softmax(-1)
    replaced = torch.multinomial(residual, count, replacement=True, generator=generator)
    frequency = torch.bincount(torch.where(kept, tokens, replaced), minlength=5) / count
    # three standard errors of a share of one half are 0.0034
    torch.testing.assert_close(frequency, p, rtol=0, atol=0.0034)
    assert abs(kept.float().mean() - torch.minimum(p, q).sum()) < 0.0034


def third_tokens(hooked: HookedModel, accept: str | None, policy: str, seeds: range) -> np.ndarray:
    prompts = [torch.tensor([1, 7, 30])] * 320
    tokens = []
    for seed in seeds:
        options = dict(max_new_tokens=3, temperature=1.5, seed=seed, accept=accept)
        outs = hooked.generate(prompts, policy, **options)
        tokens += [int(o.tokens[2]) if len(o.tokens) > 2 else LAYOUT.end for o in outs]
    return np.bincount(tokens, minlength=60)


def differ(a: np.ndarray, b: np.ndarray) -> float:
    """p of the two counts being of one distribution, rare tokens together."""
    common = a + b >= 20
    table = np.array([[*c[common], c[~common].sum()] for c in (a, b)])
    return chi2_contingency(table[:, table.sum(0) > 0]).pvalue


def test_sampling_end_to_end_is_the_full_models_distribution():
    hooked = HookedModel(tiny("llama", 3), layout=LAYOUT)
    full = third_tokens(hooked, None, "full", range(4))
    early = "both=static@2"
    assert differ(full, third_tokens(hooked, "sampling", early, range(100, 104))) > 1e-3
    # the test can fail: without verification, the distribution differs
    assert differ(full, third_tokens(hooked, "all", early, range(100, 104))) < 1e-6


def drafts(tokens: list[int], full: list[list[float]]) -> Drafts:
    scores = torch.tensor(full).log()
    return Drafts(torch.tensor(tokens), scores, scores, False, torch.zeros(len(tokens)))


def test_rules_by_hand():
    full = [[0.6, 0.3, 0.1], [0.2, 0.3, 0.5], [0.4, 0.35, 0.25]]
    assert AcceptExact().accepts(drafts([0, 1, 1], full)).tolist() == [True, False, False]
    assert AcceptTop(2).accepts(drafts([2, 1, 1], full)).tolist() == [False, True, True]
    assert AcceptRatio(0.49).accepts(drafts([1, 1, 2], full)).tolist() == [True, True, True]
    assert AcceptRatio(0.7).accepts(drafts([1, 1, 1], full)).tolist() == [False, False, True]
    sounds = torch.tensor([[0.0, 0.0], [3.0, 4.0]])  # of tokens 1 and 2; token 0 is text
    near, far = (AcceptAcoustic(d, sounds, first=1) for d in (5.0, 4.9))
    with pytest.raises(EepolicyError, match="a codebook of its own, and so no spec string"):
        EarlyExitConfig(accept=near).to_dict()
    by_sound = drafts([0, 1, 1], full)  # the most likely tokens are 0, 2 and 0
    assert near.accepts(by_sound).tolist() == [True, True, False]
    assert far.accepts(by_sound).tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"accept": "most"}, "'most' is no acceptance rule; an acceptance rule is one of: "),
        ({"accept": "top:0"}, "count: expected 1 or more"),
        ({"accept": "ratio:1.5"}, "share: expected 1 or less"),
        ({"accept": "acoustic:3"}, "compares the sounds of units"),
        ({"accept": "exact", "fill": "mask"}, "there is nothing to verify"),
        ({"accept": "exact", "policy": "oracle@1"}, "there is nothing to verify"),
        ({"fill": "mask", "policy": "oracle@1"}, "leaves nothing for the fill"),
        ({"accept": "exact", "temperature": 0.8}, "use 'sampling', or do_sample=False"),
        ({"fill": "copy"}, "'copy' is no fill; a fill is one of: catch_up, mask, propagate"),
        ({"max_pending": 0}, "max_pending: expected 1 or more"),
        ({"fill": "mask", "max_pending": 3}, "use fill='catch_up'"),
        ({"fill": "mask", "rebatch": 0.5}, "use fill='catch_up'"),
        ({"rebatch": 1.5}, "or a share from 0 to 1"),
        ({"rebatch": "cheap"}, "rebatch is 'never', 'always', 'auto'"),
        ({"accept": "exact", "rebatch": 0.5}, "rows that run on leave none"),
        (
            {"accept": "exact", "restrict_vocab": True},
            "restrict_vocab reads speech out over its own ids",
        ),
        (
            {"policy": "oracle@1", "restrict_vocab": True},
            "restrict_vocab reads speech out over its own ids",
        ),
    ],
)
def test_wrong_acceptance_options_are_refused(options, sentence):
    hooked = HookedModel(tiny("llama"), layout=LAYOUT)
    with pytest.raises(EepolicyError, match=sentence):
        hooked.generate(PROMPTS[0], **({"policy": "static@2"} | options))


@pytest.mark.parametrize("spec", ["all", "exact", "sampling", "top:5", "ratio:0.25"])
def test_the_repr_of_a_parsed_rule_evaluates_to_the_rule(spec):
    rule = parse_acceptance(spec)
    assert eval(repr(rule), vars(acceptance)) == rule


class Outside(ExitHead):
    """Drafts an id of no modality at every third position, else what the lens says."""

    def __init__(self, lens: ExitHead) -> None:
        super().__init__()
        self.lens, self.calls = lens, 0

    def logits(self, hidden, depth):
        logits = self.lens.logits(hidden, depth)
        self.calls += 1
        if self.calls % 3 == 0:
            logits[..., VOCAB - 1] = logits.max() + 1
        return logits


def test_a_rejected_draft_may_belong_to_no_modality():
    layout = replace(LAYOUT, speech=(20, VOCAB - 1))  # the last id has none
    model = HookedModel(tiny("llama"), layout=layout)
    full = model.generate(PROMPTS[0], max_new_tokens=24)
    assert VOCAB - 1 not in full.tokens
    model.heads = Outside(model.lens)
    options = {"accept": "exact", "max_pending": 4, "max_new_tokens": 24}
    lossless = model.generate(PROMPTS[0], "both=static@2", **options)
    assert model.heads.calls >= 3
    assert lossless.tokens.tolist() == full.tokens.tolist()
    # one that is kept ends the reply, as a token of full depth does
    with pytest.raises(EepolicyError, match=f"token {VOCAB - 1} belongs to no modality"):
        model.generate(PROMPTS[0], "both=static@2", **options | {"accept": "tolerance:1"})
    with pytest.raises(EepolicyError, match=f"token {VOCAB - 1} belongs to no modality"):
        model.generate(PROMPTS[0], "both=static@2", max_new_tokens=24)


def test_an_end_of_no_modality_may_be_no_end_of_a_reply():
    """As in a bench, whose replies have a fixed length."""
    layout = replace(LAYOUT, speech=(20, VOCAB - 1), end=VOCAB - 1)
    model = HookedModel(tiny("llama"), layout=layout)
    model.heads = Outside(model.lens)
    out = model.generate(PROMPTS[0], "both=static@2", max_new_tokens=24, eos_token_id=-1)
    assert len(out.tokens) == 24
    assert VOCAB - 1 in out.tokens
    options = {"accept": "tolerance:1", "max_pending": 4, "max_new_tokens": 24, "eos_token_id": -1}
    kept = model.generate(PROMPTS[0], "both=static@2", **options)
    assert VOCAB - 1 in kept.tokens  # as an accepted draft
