"""Refreshes by drift, against values computed by hand and a plain decoding loop."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from eepolicy import DriftRefresh, EepolicyError, HookedModel, Modality, Step, parse_policy
from eepolicy.policies.drift import DriftState
from eepolicy.policies.history import History
from eepolicy.testing import check_policy
from eepolicy.testing.models import LAYOUT, PROMPTS, random_llama

FULL, EXIT, TOKENS = 5, 2, 16


def step_after(depths: list[int], counts: list[int], phase: int, modality: Modality, **more):
    """A step of two rows whose last tokens had depths and distributions over `counts` ids."""
    two = torch.tensor
    history = History(
        two([1, 1]), two(depths), two([0, 0]), two([0, 0]), two([False, False]),
        [torch.zeros(n) for n in counts],
    )  # fmt: skip
    columns = [torch.full((2,), x) for x in (int(modality), 0, phase, 5, 5)]
    return Step(*columns, FULL, history, **more)


@dataclass
class Seen:
    """A readout with given entropies."""

    entropy: Tensor


def test_surprises_add_up_until_a_refresh():
    policy, log = DriftRefresh(0.5, EXIT), torch.tensor([4.0, 8.0]).double().log()
    state = policy.begin(2)
    speech = Modality.SPEECH
    # nothing to compare with: full depth
    first = step_after([0, 0], [1, 1], 0, speech, state=state)
    assert policy.candidate_depths(first) == ()
    assert policy.depths(first).tolist() == [FULL, FULL]
    # the last token, at full depth, was as uncertain as 4 and 8 ids
    state = policy.update(step_after([FULL, FULL], [4, 8], 1, speech, state=state))
    torch.testing.assert_close(state.usual, log, rtol=0, atol=1e-6)
    assert state.drift.tolist() == [0, 0]
    # an exit as uncertain as 6 ids surprises the first row by log 6/4, and not the second
    state = policy.update(step_after([EXIT, EXIT], [6, 6], 2, speech, state=state))
    assert state.drift.tolist() == pytest.approx([torch.tensor(1.5).log().item(), 0], abs=1e-6)
    assert state.usual.tolist() == pytest.approx(log.tolist(), abs=1e-6)
    # 0.405 and the surprise of the readout against 0.5
    step = step_after([EXIT, EXIT], [6, 6], 2, speech, state=state)
    assert policy.candidate_depths(step) == (EXIT,)
    for beyond, exits in ((0.09, [True, True]), (0.1, [False, True]), (0.51, [False, False])):
        assert policy.should_exit(step, EXIT, Seen(log + beyond)).tolist() == exits
    # a refresh ends the drift, and its entropy counts for the mean
    state = policy.update(step_after([FULL, EXIT], [16, 8], 3, speech, state=state))
    assert state.drift.tolist() == pytest.approx([0, 0], abs=1e-6)
    assert state.usual[0].item() == pytest.approx(torch.tensor(8.0).log().item(), abs=1e-6)


def test_text_between_chunks_is_a_refresh_that_does_not_count_for_speech():
    policy = DriftRefresh(0.5, EXIT)
    state = DriftState(*torch.tensor([[0.4, 0.4], [2.0, 2.0], [1.0, 1.0]]).double())
    step = step_after([FULL, FULL], [9, 9], 0, Modality.SPEECH, state=state)
    updated = policy.update(step)
    assert updated.drift.tolist() == [0, 0]
    assert updated.usual.tolist() == [2, 2]
    both = DriftRefresh(0.5, EXIT, on="both").update(step)
    assert both.usual[0].item() == pytest.approx((2 + torch.tensor(9.0).log().item()) / 2)
    text = step_after([FULL, FULL], [9, 9], 3, Modality.TEXT, state=state)
    assert policy.candidate_depths(text) == ()
    assert not policy.should_exit(text, EXIT, Seen(torch.zeros(2))).any()


def test_specs_and_refusals():
    policy = parse_policy("both=drift>0.3@6")
    assert policy == DriftRefresh(0.3, 6, on="both")
    assert policy.spec == "both=drift>0.3@6"
    check_policy("drift>0.3@2")
    with pytest.raises(EepolicyError, match="an exit is below full depth"):
        policy.check(6)
    for spec in ("drift<0.3@6", "drift>0.3@[4,6]", "drift>-1@6"):
        with pytest.raises(EepolicyError):
            parse_policy(spec)


@pytest.fixture(scope="module")
def model() -> HookedModel:
    """A model whose last layers change little, so that some drafts are accepted."""
    hooked = random_llama(FULL)
    with torch.no_grad():
        for layer in hooked.model.model.layers[EXIT:]:
            layer.self_attn.o_proj.weight.mul_(0.3)
            layer.mlp.down_proj.weight.mul_(0.3)
    return hooked


def readout(model: HookedModel, prompt: Tensor, tokens: list[int], depth: int) -> tuple[int, float]:
    """The stock model's most likely token after a prefix at a depth, and the entropy there."""
    ids = torch.cat([prompt, torch.tensor(tokens, dtype=torch.long)])
    with torch.no_grad():
        states = model.model.model(ids[None], output_hidden_states=True).hidden_states
        hidden = states[depth][0, -1]
        if depth < FULL:  # the last one is normalised already
            hidden = model.model.model.norm(hidden)
        logits = model.model.lm_head(hidden)
    logs = logits.double().log_softmax(-1)
    return int(logits.argmax()), float(-(logs.exp() * logs).sum())


def plain_decode(model: HookedModel, prompt: Tensor, threshold: float, verify: bool):
    """Tokens and depths of a loop over the stock model; each step keeps its own plain state."""
    tokens: list[int] = []
    depths: list[int] = []
    #: drift and entropies at full depth before each token
    states: list[tuple[float, list[float]]] = [(0.0, [])]
    drafts = rejected = 0
    while True:
        drift, usual = states[-1]
        token, entropy = readout(model, prompt, tokens, EXIT)
        surprise = max(0.0, entropy - sum(usual) / len(usual)) if usual else float("inf")
        exits = drift + surprise <= threshold
        if exits:
            depths, states = [*depths, EXIT], [*states, (drift + surprise, usual)]
            drafts += 1
        else:
            token, entropy = readout(model, prompt, tokens, FULL)
            depths, states = [*depths, FULL], [*states, (0.0, [*usual, entropy])]
        tokens = [*tokens, token]
        ended = len(tokens) == TOKENS or token == LAYOUT.end
        if verify and (not exits or ended):
            first = len(tokens) - drafts - (not exits)
            for k in range(first, first + drafts):
                right, entropy = readout(model, prompt, tokens[:k], FULL)
                if right != tokens[k]:
                    usual = states[k][1]
                    tokens, depths = [*tokens[:k], right], [*depths[:k], FULL]
                    states = [*states[: k + 1], (0.0, [*usual, entropy])]
                    rejected += 1
                    break
            drafts = 0
        if len(tokens) == TOKENS or tokens[-1] == LAYOUT.end:
            return tokens, depths, rejected


@pytest.mark.parametrize("threshold", [0.0, 0.02, 0.2])
@pytest.mark.parametrize("accept", ["all", "exact"])
def test_drift_refresh_matches_a_plain_decoding_loop(model, accept, threshold):
    policy = DriftRefresh(threshold, EXIT, on="both")
    outputs = model.generate(PROMPTS, policy, TOKENS, accept=accept, max_pending=TOKENS)
    rejected = 0
    for prompt, out in zip(PROMPTS, outputs, strict=True):
        tokens, depths, rejects = plain_decode(model, prompt, threshold, accept == "exact")
        assert out.tokens.tolist() == tokens
        if accept == "all":
            assert out.trace.depth.tolist() == depths
        assert {EXIT, FULL} == {*depths}
        rejected += rejects
    assert (rejected > 0) == (accept == "exact")
