"""Drafts by measured acceptance and costs, against plain arithmetic and a plain decoding loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from eepolicy import DynamicDraft, EarlyExitConfig, EepolicyError, HookedModel, parse_policy
from eepolicy.decode.rebatch import LayerCosts
from eepolicy.policies.dynamic_draft import (
    DECAY,
    MAX_DRAFTS,
    PRIOR_RATE,
    PRIOR_WEIGHT,
    best_plan,
)
from eepolicy.testing.models import LAYOUT, PROMPTS, random_llama

FULL = 20
rates = st.floats(0, 1)


def expected_tokens(rate: float, drafts: int) -> float:
    """Mean number of tokens of a refresh, over the number of drafts that are accepted."""
    cut = sum((k + 1) * rate**k * (1 - rate) for k in range(drafts))
    return cut + (drafts + 1) * rate**drafts


@given(rates, st.integers(1, FULL - 1))
def test_with_equal_costs_the_plan_is_that_of_the_paper(rate, depth):
    """Equation 1 and theorem 3.8 of arXiv 2211.17192, with c = depth / full depth."""
    c = depth / FULL
    speeds = [expected_tokens(rate, n) / (n * c + 1) for n in range(MAX_DRAFTS + 1)]
    if rate < 0.999:
        closed = [(1 - rate ** (n + 1)) / ((1 - rate) * (n * c + 1)) for n in range(MAX_DRAFTS + 1)]
        assert speeds == pytest.approx(closed)
    choice, number = best_plan(torch.tensor([[rate]], dtype=torch.float64), (depth,), FULL, None)
    assert choice.tolist() == [0]
    assert speeds[int(number)] == pytest.approx(max(speeds))


@given(st.lists(rates, min_size=3, max_size=3), st.lists(st.floats(0.1, 9), min_size=11))
def test_with_measured_costs_the_plan_has_the_most_tokens_a_second(chances, seconds):
    depths, numbers = (4, 6, 11), tuple(range(1, 11))
    costs = LayerCosts(numbers, tuple(seconds[:10]), readout_seconds=seconds[10])
    speeds = {}
    for i, (depth, rate) in enumerate(zip(depths, chances, strict=True)):
        for drafts in range(MAX_DRAFTS + 1):
            spent = 0.0
            for _ in range(drafts):
                spent += depth * seconds[0] + seconds[10]
            spent += depth * seconds[0] + (FULL - depth) * seconds[drafts] + seconds[10]
            if drafts:
                spent += seconds[10]
            speeds[i, drafts] = expected_tokens(rate, drafts) / spent
    rows = torch.tensor([chances, chances[::-1]], dtype=torch.float64)
    choice, number = best_plan(rows, depths, FULL, costs)
    assert speeds[int(choice[0]), int(number[0])] == pytest.approx(max(speeds.values()))


def test_plans_of_known_cases():
    one = torch.ones(1, 2, dtype=torch.float64)
    assert best_plan(one, (4, 6), FULL, None) == (0, MAX_DRAFTS)  # never rejected: the cheaper
    assert best_plan(0 * one, (4, 6), FULL, None)[1] == 0  # always rejected: no draft
    # 0.2 at 4 layers against 0.95 at 6
    assert best_plan(torch.tensor([[0.2, 0.95]]), (4, 6), FULL, None)[0] == 1


@pytest.fixture(scope="module")
def model() -> HookedModel:
    """A model whose drafts at depth 2 are often accepted, and at depth 4 nearly always."""
    hooked = random_llama(6)
    with torch.no_grad():
        for i, layer in enumerate(hooked.model.model.layers[2:]):
            layer.self_attn.o_proj.weight.mul_(0.3 if i < 2 else 0.1)
            layer.mlp.down_proj.weight.mul_(0.3 if i < 2 else 0.1)
    return hooked


def most_likely(model: HookedModel, prompt: Tensor, tokens: list[int], depth: int) -> int:
    """The stock model's most likely token after a prefix, read out at a depth."""
    ids = torch.cat([prompt, torch.tensor(tokens, dtype=torch.long)])
    with torch.no_grad():
        states = model.model.model(ids[None], output_hidden_states=True).hidden_states
        hidden = states[depth][0, -1]
        if depth < model.depth:  # the last one is normalised already
            hidden = model.model.model.norm(hidden)
        return int(model.model.lm_head(hidden).argmax())


def plain_decode(model: HookedModel, prompt: Tensor, depths: tuple[int, ...], new_tokens: int):
    """Tokens and depths of a loop that drafts, verifies, and keeps its counts in plain numbers."""
    tokens: list[int] = []
    exits: list[int] = []
    accepted, rejected = [0.0] * len(depths), [0.0] * len(depths)
    plans = []

    def verify(drafts: int) -> bool:
        """Verify the newest drafts; whether all are accepted."""
        nonlocal tokens, exits
        first = len(tokens) - drafts
        for k in range(drafts):
            right = most_likely(model, prompt, tokens[: first + k], model.depth)
            if right != tokens[first + k]:
                tokens, exits = [*tokens[: first + k], right], [*exits[: first + k], model.depth]
                accepted[choice] += k
                rejected[choice] += 1
                return False
        accepted[choice] += drafts
        return True

    while True:
        chances = [
            (a + PRIOR_RATE * PRIOR_WEIGHT) / (a + r + PRIOR_WEIGHT)
            for a, r in zip(accepted, rejected, strict=True)
        ]
        options = [
            (expected_tokens(rate, n) / (n * depth + model.depth), i, n)
            for i, (rate, depth) in enumerate(zip(chances, depths, strict=True))
            for n in range(MAX_DRAFTS + 1)
        ]
        _, choice, number = max(options, key=lambda option: option[0])
        plans.append((depths[choice], number))
        made, complete = 0, True
        while made < number and len(tokens) < new_tokens:
            tokens.append(most_likely(model, prompt, tokens, depths[choice]))
            exits.append(depths[choice])
            made += 1
            if len(tokens) == new_tokens or tokens[-1] == LAYOUT.end:
                break
        ended = len(tokens) == new_tokens or (tokens and tokens[-1] == LAYOUT.end)
        accepted = [DECAY * a for a in accepted]
        rejected = [DECAY * r for r in rejected]
        if made:
            complete = verify(made)
        if complete and not ended:
            tokens.append(most_likely(model, prompt, tokens, model.depth))
            exits.append(model.depth)
        if len(tokens) >= new_tokens or tokens[-1] == LAYOUT.end:
            return tokens, exits, plans


@pytest.mark.parametrize("depths", [(2,), (2, 4)])
def test_a_whole_decode_against_a_plain_loop(model, depths):
    """The plan of the loop: layers cost the same for any number of positions."""
    model.measured_costs[False] = LayerCosts((1, 99), (1.0, 1.0))
    used = set()
    for prompt in PROMPTS:
        [output] = model.generate([prompt], DynamicDraft(depths, "both"), 36, accept="exact")
        tokens, exits, plans = plain_decode(model, prompt, depths, 36)
        assert output.tokens.tolist() == tokens
        assert output.trace.depth.tolist() == exits
        used |= {*plans}
    assert len(used) > 2  # it adapts
    assert {depth for depth, _ in used} == {*depths}


def test_lossless_for_any_costs(model):
    full = model.generate(PROMPTS, "full", 40)
    for seconds in ((1.0, 1.0), (1.0, 99.0), (1.0, 400.0)):
        model.measured_costs[False] = LayerCosts((1, 99), seconds, readout_seconds=seconds[1] / 50)
        ours = model.generate(PROMPTS, "both=dynamic-draft@[2,4]", 40, accept="exact")
        for one, other in zip(ours, full, strict=True):
            assert one.tokens.tolist() == other.tokens.tolist()
    # a draft that costs more than it saves is not made
    assert (ours[0].trace.depth == model.depth).all()


def test_spec_strings():
    assert parse_policy("dynamic-draft@6") == DynamicDraft(6)
    assert parse_policy("text=dynamic-draft@[4,6]") == DynamicDraft((4, 6), "text")
    assert DynamicDraft(6).min_depth(FULL) == 6
    for wrong in (20, 21, (4, 20)):
        with pytest.raises(EepolicyError, match=r"the model has depths 1 to 20, and a draft is"):
            DynamicDraft(wrong).check(FULL)
    with pytest.raises(EepolicyError, match="rising depths"):
        DynamicDraft((6, 4))
    with pytest.raises(EepolicyError, match=r"no policy.*write dynamic-draft@DEPTH"):
        parse_policy("dynamic-draft:3@6")


@pytest.mark.parametrize("policy", ["dynamic-draft@6", "text=dynamic-draft@6,speech=static@6"])
def test_dynamic_draft_without_verification_is_refused(policy):
    with pytest.raises(EepolicyError, match="verifies nothing: use it with accept='exact'"):
        EarlyExitConfig(policy)
    assert EarlyExitConfig(policy, accept="exact").needs_costs
