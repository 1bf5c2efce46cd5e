"""Rules that keep a state for each reply, joined rules, and rules in greedy decoding."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from conftest import FAMILIES, LAYERS, LAYOUT, tiny
from decoding import PROMPTS, RandomDepths
from hypothesis import given, settings
from hypothesis import strategies as st

from eepolicy import EarlyExitConfig, EepolicyError, HookedModel
from eepolicy.decode import acceptance
from eepolicy.decode.acceptance import (
    AcceptAcoustic,
    AcceptAll,
    Acceptance,
    AcceptBlock,
    AcceptExact,
    AcceptGroups,
    AcceptJoined,
    AcceptRatio,
    AcceptRegret,
    AcceptSampling,
    AcceptTolerance,
    AcceptTop,
    Drafts,
    parse_acceptance,
)
from eepolicy.speech.units import Units
from eepolicy.testing import check_acceptance
from eepolicy.testing.decoding import stock_scores
from eepolicy.trace import DraftStatus


def greedy(tokens: list[int], scores: list[list[float]], state=None) -> Drafts:
    rows = torch.tensor(scores)
    return Drafts(torch.tensor(tokens), rows, rows[:, :0], False, torch.zeros(len(tokens)), state)


def test_regret_by_hand():
    scores = [[3.0, 2.0, 0.0], [1.0, 5.0, 4.5], [2.0, 2.0, 1.0]]
    drafts = greedy([1, 2, 2], scores, 0.0)  # regrets 1, 0.5 and 1
    assert AcceptRegret(9, 9, 3).accepts(drafts).tolist() == [True, True, True]
    # the sum: 1, 1.5 and 2.5
    assert AcceptRegret(1.5, 9, 3).accepts(drafts).tolist() == [True, True, False]
    assert AcceptRegret(0.9, 9, 3).accepts(drafts).tolist() == [False, False, False]
    # a rejection of the drafts drops 3, 2 and 1 of them
    assert AcceptRegret(9, 0.4, 3).accepts(drafts).tolist() == [True, True, False]
    assert AcceptRegret(9, 0.3, 3).accepts(drafts).tolist()[0] is False
    assert AcceptRegret(9, 9, 1).accepts(drafts).tolist() == [True, False, False]
    # what the reply spent before
    rule = AcceptRegret(2.5, 9, 3)
    assert rule.begin() == 0.0
    later = greedy([1, 2, 2], scores, 1.0)
    assert rule.accepts(later).tolist() == [True, True, False]
    assert [rule.next_state(later, n) for n in range(4)] == [1.0, 2.0, 2.5, 3.5]
    # the most likely tokens are free, whatever is left
    assert AcceptRegret(0, 0, 0).accepts(greedy([0, 1, 1], scores, 0.0)).all()
    # a token that the processors excluded never stays
    assert not AcceptRegret(1e9, 9, 9).accepts(greedy([1], [[0.0, -torch.inf]], 0.0)).any()


@dataclass(frozen=True)
class Watched(AcceptRegret):
    """Keeps what the verifier passed."""

    seen: list[tuple[float, list[float], int]] = field(default_factory=list)

    def next_state(self, drafts: Drafts, num_accepted: int) -> float:
        own = drafts.target_scores.gather(1, drafts.tokens[:, None])[:, 0]
        regrets = (drafts.target_scores.amax(-1) - own).tolist()
        self.seen.append((drafts.state, regrets, num_accepted))
        return super().next_state(drafts, num_accepted)


@pytest.mark.parametrize(
    ("family", "budget"),
    [
        ("llama", 1.5),
        ("gemma3", 0.0),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("llama", 0.0), ("llama", 6.0), ("gemma3", 1.5), ("gemma3", 6.0))
        ),
    ],
)
def test_no_reply_spends_more_regret_than_its_budget(family, budget):
    """By the stock model's logits, for each row of a ragged batch."""
    hooked = HookedModel(tiny(family, 2, torch.float64), layout=LAYOUT)
    rule = AcceptRegret(budget, 2.0, 2)
    options = dict(accept=rule, max_new_tokens=40, max_pending=4)
    together = hooked.generate(PROMPTS, "both=static@3", **options)
    relaxed = 0
    for prompt, out in zip(PROMPTS, together, strict=True):
        scores = stock_scores(hooked, out)
        regret = scores.amax(-1) - scores.gather(1, out.tokens[:, None])[:, 0]
        kept = torch.from_numpy(out.trace.draft_status == DraftStatus.ACCEPTED)
        assert float(regret[~kept].sum()) < 1e-4
        assert float(regret[kept].sum()) <= budget + 1e-4
        relaxed += int((regret[kept] > 1e-4).sum())
        # a neighbour spends nothing of this reply's budget
        alone = hooked.generate(prompt, "both=static@3", **options)
        assert alone.tokens.tolist() == out.tokens.tolist()
        assert np.array_equal(alone.trace.layer_calls, out.trace.layer_calls)
        if budget == 0:
            exact = hooked.generate(prompt, "full", max_new_tokens=40)
            assert out.tokens.tolist() == exact.tokens.tolist()
    assert (relaxed > 0) == (budget > 0)


def test_the_state_is_rolled_back_with_rejected_drafts():
    hooked = HookedModel(tiny("llama", 2, torch.float64), layout=LAYOUT)
    rule = Watched(6.0, 2.0, 2)
    hooked.generate(PROMPTS[0], "both=static@3", accept=rule, max_new_tokens=60, max_pending=4)
    spent, dropped = 0.0, 0.0
    for state, regrets, num_accepted in rule.seen:
        assert state == pytest.approx(spent, abs=1e-5)
        spent += sum(regrets[:num_accepted])
        dropped += sum(regrets[num_accepted:])
    assert spent > 0
    assert dropped > 6  # the budget would be empty if rejected drafts counted


def test_joined_rules_must_all_accept():
    rule = parse_acceptance("top:2+ratio:0.5")
    scores = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.25, 0.15], [0.4, 0.35, 0.25]]).log()
    drafts = greedy([1, 1, 2], scores.tolist())
    assert AcceptTop(2).accepts(drafts).tolist() == [True, True, False]
    assert AcceptRatio(0.5).accepts(drafts).tolist() == [True, False, True]
    assert rule.accepts(drafts).tolist() == [True, False, False]
    # sampled drafts are treated alike, and the full model's scores replace a rejected one
    assert torch.equal(rule.replacement_scores(drafts, 1), scores[1])
    check_acceptance("top:3+ratio:0.2+acoustic:3")


def test_joined_rules_are_bound_and_decode():
    codebook = torch.randn(40, 320, generator=torch.Generator().manual_seed(0))
    hooked = HookedModel(tiny("llama"), layout=LAYOUT, vocoder=Units(codebook))

    def tokens(accept):
        outs = hooked.generate(PROMPTS, "both=static@2", accept=accept, max_new_tokens=16)
        return [o.tokens.tolist() for o in outs]

    assert tokens("top:1+acoustic:30") == tokens("exact") != tokens("acoustic:30")
    assert tokens("top:60+acoustic:30") == tokens("acoustic:30")


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("top:5+sampling", r"AcceptSampling\(\) cannot be joined"),
        ("block+top:5", r"AcceptBlock\(\) cannot be joined"),
        ("regret:3+top:5", "cannot be joined"),
        ("top:5+all", r"AcceptAll\(\) cannot be joined"),
        ("top:5+", "'top:5\\+' is no acceptance rule"),
        ("tolerance:1.5", "tolerance: expected 1 or less"),
        ("regret:-1", "write regret:BUDGET"),
        ("groups:1e999", "distance: expected a finite number"),
        ("acoustic:1e999", "distance: expected a finite number"),
        ("nonsense", r"'\+' joins rules that must all accept"),
    ],
)
def test_wrong_rule_specs_are_refused(spec, sentence):
    with pytest.raises(EepolicyError, match=sentence):
        parse_acceptance(spec)


def test_regret_is_for_greedy_decoding():
    hooked = HookedModel(tiny("llama"), layout=LAYOUT)
    with pytest.raises(EepolicyError, match="greedy decoding"):
        hooked.generate(PROMPTS[0], "both=static@2", accept="regret:8", temperature=0.7)


shares, positive = st.floats(0, 1), st.floats(0, 1e30)
single = st.one_of(
    st.builds(AcceptTop, st.integers(1, 10**6)),
    st.builds(AcceptRatio, shares),
    st.builds(AcceptAcoustic, positive),
)
rules = st.one_of(
    single,
    st.builds(AcceptJoined, st.lists(single, min_size=2, max_size=4).map(tuple)),
    st.builds(AcceptTolerance, shares),
    st.builds(AcceptGroups, positive),
    st.builds(AcceptRegret, positive, positive, st.integers(0, 99)),
    st.builds(AcceptRegret, positive),
    st.sampled_from([AcceptAll(), AcceptBlock(), AcceptExact(), AcceptSampling()]),
)


@given(rule=rules)
def test_specs_and_reprs_round_trip(rule: Acceptance):
    assert parse_acceptance(rule.spec) == rule
    assert eval(repr(rule), vars(acceptance)) == rule
    config = EarlyExitConfig(accept=rule)
    assert EarlyExitConfig.from_dict(config.to_dict()) == config


@settings(max_examples=10)
@given(
    family=st.sampled_from(FAMILIES),
    seed=st.integers(0, 10_000),
    accept=st.sampled_from(["block", "tolerance:0.3", "sampling", "groups:0", "regret:0"]),
)
def test_rules_that_are_exact_in_greedy_decoding(family, seed, accept):
    model = tiny(family, seed % 7)
    codebook = torch.randn(40, 320, generator=torch.Generator().manual_seed(0))
    hooked = HookedModel(model, layout=LAYOUT, vocoder=Units(codebook))
    options = dict(max_pending=3, max_new_tokens=12)
    ours = hooked.generate(PROMPTS, RandomDepths(seed), accept=accept, **options)
    expected = hooked.generate(PROMPTS, RandomDepths(seed), accept="exact", **options)
    for out, exact in zip(ours, expected, strict=True):
        assert out.tokens.tolist() == exact.tokens.tolist()
        assert np.array_equal(out.trace.draft_status, exact.trace.draft_status)
        assert np.array_equal(out.trace.layer_calls, exact.trace.layer_calls)
        assert (out.trace.depth[out.trace.draft_status == DraftStatus.REPLACEMENT] == LAYERS).all()


def test_groups_equal_acoustic_in_greedy_decoding():
    codebook = torch.randn(40, 320, generator=torch.Generator().manual_seed(0))
    hooked = HookedModel(tiny("llama"), layout=LAYOUT, vocoder=Units(codebook))
    tokens = [
        [
            o.tokens.tolist()
            for o in hooked.generate(PROMPTS, "both=static@2", accept=accept, max_new_tokens=16)
        ]
        for accept in ("groups:25.3", "acoustic:25.3", "exact")
    ]
    assert tokens[0] == tokens[1] != tokens[2]
