"""Hundreds of random configurations of all families against the stock model."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from random_cases import (
    ENTRANCES,
    Case,
    Reply,
    chosen_token,
    draw,
    hooked_model,
    readouts,
    replies,
    stock_model,
    stock_replies,
)

from eepolicy.policies import FullDepth
from eepolicy.testing.acceptance import check_verified
from eepolicy.testing.families import text_families
from eepolicy.testing.models import LAYOUT, LayerCounter

CASES = 360
#: options that depend on where a reply begins, which one token does not tell
PLACED = {
    "min_new_tokens",
    "begin_suppress_tokens",
    "exponential_decay_length_penalty",
    "forced_eos_token_id",
}


#: options that see the padding, in transformers too
SEES_PADDING = {"min_length", "no_repeat_ngram_size", "repetition_penalty"}
#: difference of two logits that half precision may swap, as a share of the spread
TIE = 0.02
FAMILIES = text_families()


def alone(case: Case, row: int) -> Case:
    """The case with one of its prompts, through `HookedModel.generate`."""
    values = {**vars(case), "prompts": (case.prompts[row],), "entrance": "list"}
    return Case(**values)


def check_tokens_by_depth(case: Case, model, prompt: list[int], reply: Reply) -> None:
    """With catch-up, a token is the choice of the stock model with as many layers as it ran."""
    ids = [*prompt, *reply.tokens]
    depths = reply.trace.depth.tolist()
    if set(case.options) == {"max_new_tokens"}:
        by_depth = {d: readouts(model, ids, len(depths), d).argmax(-1) for d in {*depths}}
        expected = [int(by_depth[d][i]) for i, d in enumerate(depths)]
    else:
        expected = [
            chosen_token(case, model, ids[: len(prompt) + i], d) for i, d in enumerate(depths)
        ]
    assert reply.tokens == expected, f"at the depths {depths}"


def check_thresholds(case: Case, model, prompt: list[int], reply: Reply) -> None:
    """A token exits at the first candidate depth whose statistic passes the threshold."""
    found = re.fullmatch(r"both=(entropy<|confidence>)([\d.]+)@(.*)", case.config["policy"])
    if not found:
        return
    named = [int(n) for n in re.findall(r"\d+", found[3])]
    candidates = named if found[3].startswith("[") else range(named[0], case.layers)
    ids, count = [*prompt, *reply.tokens], len(reply.tokens)
    expected = torch.full((count,), case.layers)
    for depth in sorted(candidates, reverse=True):
        logs = readouts(model, ids, count, depth).log_softmax(-1)
        if found[1] == "entropy<":
            passes = -(logs.exp() * logs).sum(-1) < float(found[2])
        else:
            passes = logs.exp().amax(-1) > float(found[2])
        expected[passes] = depth
    assert reply.trace.depth.tolist() == expected.tolist()


def check_rounded(case: Case, model, ours: list[Reply]) -> None:
    """Replies in half precision part from the stock model's at a tie only."""
    for prompt, reply, expected in zip(case.prompts, ours, stock_replies(case, model), strict=True):
        pairs = list(zip(reply.tokens, expected, strict=False))
        parting = [i for i, (one, other) in enumerate(pairs) if one != other][:1]
        assert parting or len(reply.tokens) == len(expected)
        for place in parting:
            ids = [*prompt, *expected[: place + 1]]
            logits = readouts(model, ids, 1, case.layers)[0].float()
            one, other = pairs[place]
            assert abs(logits[one] - logits[other]) < TIE * (logits.max() - logits.min())


def check_row(case: Case, row: int, together: Reply, model, hooked) -> None:
    """One row of a greedy reply, decoded alone."""
    one, prompt = alone(case, row), [*case.prompts[row]]
    with LayerCounter(model, hooked.heads) as counter:
        [reply] = replies(one, model, hooked)
    trace = reply.trace
    counted = len(counter.calls) + len(counter.branch_calls)
    assert counted == trace.prefill_layer_calls + trace.layer_calls.sum() + trace.filled.sum()
    is_padded = len({len(p) for p in case.prompts}) > 1
    if not (is_padded and SEES_PADDING & {*case.options}):
        assert reply.tokens == together.tokens
        for column in ("depth", "draft_status"):
            assert getattr(trace, column).tolist() == getattr(together.trace, column).tolist()
    exits = case.exits
    if exits.fill.defers and exits.accept.name == "all":
        if not PLACED & {*case.options}:
            check_tokens_by_depth(one, model, prompt, reply)
        check_thresholds(one, model, prompt, reply)
    elif exits.fill.defers and set(case.options) == {"max_new_tokens"}:
        [output] = hooked.generate([torch.tensor(prompt)], config=exits, **case.options)
        bound = exits.accept.bind(LAYOUT, hooked.vocoder)
        check_verified(exits.accept, bound, hooked, output)


def check(case: Case) -> None:
    """All that holds for a case."""
    model = stock_model(case)
    hooked = hooked_model(model)
    ours = replies(case, model, hooked)
    if case.dtype == torch.bfloat16:
        check_rounded(case, model, ours)
        return
    if case.is_lossless:
        assert [reply.tokens for reply in ours] == stock_replies(case, model)
    if isinstance(case.exits.policy, FullDepth):
        assert all((reply.trace.depth == case.layers).all() for reply in ours)
    if not case.is_sampled:
        for row in range(len(case.prompts)):
            check_row(case, row, ours[row], model, hooked)


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", range(CASES))
def test_a_random_case(number):
    case = draw(number, FAMILIES)
    try:
        with warnings.catch_warnings():  # a stock model may ignore the window of its config
            warnings.filterwarnings("ignore", message="the config names sliding_window")
            check(case)
    except Exception as error:
        error.args = (f"{error}\nThe case is {case}",)
        raise


def test_the_cases_have_every_family_and_entrance():
    cases = [draw(number, FAMILIES) for number in range(CASES)]
    assert {case.family for case in cases} == {*FAMILIES}
    assert sum(case.is_lossless for case in cases) > CASES / 4
    assert sum(case.is_sampled for case in cases) > CASES / 40
    for name, values in (("entrance", ENTRANCES), ("layers", (3, 4, 5))):
        drawn = [getattr(case, name) for case in cases]
        assert min(drawn.count(value) for value in values) > CASES / 20
