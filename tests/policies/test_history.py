"""The history that a policy reads, and the state that it keeps, against plain loops."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from eepolicy import (
    ByModality,
    EepolicyError,
    ExitPolicy,
    HookedModel,
    PolicyState,
    Static,
    Step,
)
from eepolicy.decode import overlap
from eepolicy.decode.reply import Reply
from eepolicy.decode.verify import MAX_UNVERIFIED
from eepolicy.testing import check_policy
from eepolicy.testing.models import LAYOUT, PROMPTS, random_llama
from eepolicy.trace import DraftStatus, TokenCost

DEPTH = 5
TOKENS = 24
MODULUS = 1_000_003


@pytest.fixture(scope="module")
def model() -> HookedModel:
    """A model whose last layers change little, so that some drafts are accepted."""
    hooked = random_llama(DEPTH)
    with torch.no_grad():
        for layer in hooked.model.model.layers[2:]:
            layer.self_attn.o_proj.weight.mul_(0.3)
            layer.mlp.down_proj.weight.mul_(0.3)
    return hooked


@dataclass(frozen=True)
class HistoryState(PolicyState):
    """A hash of the tokens in the policy's history, and the number of verified drafts."""

    tokens: Tensor
    verified: Tensor


@dataclass(frozen=True)
class Listening(ExitPolicy):
    """Depth 2 with a full-depth position now and then; logs its history."""

    period: int = 4
    log: list[dict] = field(default_factory=list, compare=False)
    needs_history: ClassVar[bool] = True

    def begin(self, rows):
        zeros = torch.zeros(rows, dtype=torch.long)
        return HistoryState(zeros, zeros)

    def update(self, step):
        state, history = step.state, step.history
        seen = (state.tokens * 31 + history.token + 7) % MODULUS
        new = torch.where(history.just_verified, history.num_drafts, 0)
        self.log.append(
            {
                name: getattr(history, name).tolist()
                for name in ("token", "depth", "num_drafts", "num_accepted", "just_verified")
            }
            | {"confidence": history.confidence, "entropy": history.entropy}
            | {"position": step.position.tolist(), "tokens": seen.tolist()}
        )
        return HistoryState(
            torch.where(step.position == 0, state.tokens, seen), state.verified + new
        )

    def depths(self, step):
        # the state decides too, so that a wrong state changes depths
        full = (step.position + step.state.tokens) % self.period == 0
        return torch.where(full, step.full_depth, 2)


def hash_of(tokens: list[int]) -> int:
    value = 0
    for token in tokens:
        value = (value * 31 + token + 7) % MODULUS
    return value


def logits_at(model: HookedModel, ids: Tensor, depth: int) -> Tensor:
    """Logits after the last id, from the stock model's hidden states at a depth: (vocab,)."""
    with torch.no_grad():
        states = model.model.model(ids[None], output_hidden_states=True).hidden_states
        hidden = states[depth][0, -1]
        if depth < DEPTH:  # the last one is normalised already
            hidden = model.model.model.norm(hidden)
        return model.model.lm_head(hidden)


@pytest.mark.parametrize("accept", ["all", "exact"])
def test_the_history_is_that_of_the_reply(model, accept):
    """At each step: the reply so far, and what a plain verification of its drafts accepts."""
    seen_rejections = 0
    for prompt in PROMPTS:
        policy = Listening()
        model.generate([prompt], policy, TOKENS, accept=accept)
        tokens, depths, drafts = [], [], 0  # the reply, replayed
        expected = {"num_drafts": 0, "num_accepted": 0, "just_verified": False}
        for seen in policy.log:
            assert seen["position"] == [len(tokens)]
            assert seen["token"] == [tokens[-1] if tokens else -1]
            assert seen["depth"] == [depths[-1] if depths else 0]
            assert {name: seen[name][0] for name in expected} == expected
            if tokens:
                ids = torch.cat([prompt, torch.tensor(tokens[:-1], dtype=torch.long)])
                p = logits_at(model, ids, depths[-1]).softmax(-1)
                assert seen["confidence"].item() == pytest.approx(p.max().item(), abs=1e-5)
                entropy = -(p * p.log()).sum().item()
                assert seen["entropy"].item() == pytest.approx(entropy, abs=1e-5)
            else:
                assert seen["confidence"].isnan().all()
                assert seen["entropy"].isnan().all()
            # the same decision from the reply alone, then the token of the stock model
            is_full = (len(tokens) + hash_of(tokens)) % policy.period == 0
            depth = DEPTH if is_full else 2
            ids = torch.cat([prompt, torch.tensor(tokens, dtype=torch.long)])
            new = int(logits_at(model, ids, depth).argmax())
            expected["just_verified"] = False
            if accept == "all":
                tokens, depths = [*tokens, new], [*depths, depth]
                continue
            if depth < DEPTH:
                tokens, depths, drafts = [*tokens, new], [*depths, depth], drafts + 1
                if len(tokens) < TOKENS and new != LAYOUT.end and drafts <= MAX_UNVERIFIED:
                    continue
            if drafts:
                first = len(tokens) - drafts
                right = [
                    int(
                        logits_at(
                            model, torch.cat([prompt, torch.tensor(tokens[:i]).long()]), DEPTH
                        ).argmax()
                    )
                    for i in range(first, len(tokens))
                ]
                wrong = [i for i, token in enumerate(right) if token != tokens[first + i]]
                accepted = wrong[0] if wrong else drafts
                expected = {
                    "num_drafts": drafts,
                    "num_accepted": accepted,
                    "just_verified": True,
                }
                drafts = 0
                if wrong:
                    seen_rejections += 1
                    tokens = [*tokens[: first + accepted], right[accepted]]
                    depths = [*depths[: first + accepted], DEPTH]
                    continue
            if depth == DEPTH:
                tokens, depths = [*tokens, new], [*depths, depth]
    assert bool(seen_rejections) == (accept == "exact")


def test_the_state_of_a_token_is_that_of_the_reply_before_it(model):
    """A state that keeps rejected drafts would hash other tokens."""
    for prompt in PROMPTS:
        policy = Listening()
        [output] = model.generate([prompt], policy, TOKENS, accept="exact")
        tokens = output.tokens.tolist()
        last = {seen["position"][0]: seen["tokens"][0] for seen in policy.log}
        assert (output.trace.draft_status == DraftStatus.REPLACEMENT).any()
        assert (output.trace.draft_status == DraftStatus.ACCEPTED).any()
        # the reply's last positions may have been rejected drafts, which nothing decided again
        final = range(1, len(tokens) - 8)
        checked = [position for position in final if position in last]
        assert len(checked) > 5
        for position in checked:
            assert last[position] == hash_of(tokens[:position])


@pytest.mark.parametrize("accept", ["all", "exact"])
def test_rows_do_not_depend_on_their_neighbours(model, accept):
    policy = Listening()
    alone = [model.generate([prompt], policy, TOKENS, accept=accept)[0] for prompt in PROMPTS]
    together = model.generate(PROMPTS, policy, TOKENS, accept=accept)
    for one, other in zip(alone, together, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        assert one.trace.depth.tolist() == other.trace.depth.tolist()
        assert one.trace.draft_status.tolist() == other.trace.draft_status.tolist()


@given(st.lists(st.integers(0, 4), max_size=30), st.data())
def test_rollback_against_a_plain_stack(moves, data):
    """Drafts and verifications at random; `stack` has the state of each token of the reply."""

    @dataclass(frozen=True)
    class Number(PolicyState):
        value: Tensor

    def state(value: int) -> Number:
        return Number(torch.tensor([value]))

    reply, stack, drafts = Reply(LAYOUT, DEPTH, frozenset(), state(-1)), [], 0
    for number, move in enumerate(moves):
        reply.begin_step(state(number))
        if move < 3 or not drafts:
            reply.append(5, 2, TokenCost())
            reply.draft_scores.append(torch.zeros(1))
            stack, drafts = [*stack, number], drafts + 1
        elif move == 3:
            reply.accept_drafts()
            reply.append(5, DEPTH, TokenCost())
            assert reply.history_fields()[2:] == (drafts, drafts, True)
            stack, drafts = [*stack, number], 0
        else:
            accepted = data.draw(st.integers(0, drafts - 1))
            reply.reject_drafts(accepted)
            first = len(stack) - drafts + accepted
            stack = stack[: first + 1]
            reply.append(5, DEPTH, TokenCost(), DraftStatus.REPLACEMENT)
            assert reply.history_fields()[2:] == (drafts, accepted, True)
            drafts = 0
        assert reply.policy_state.value.tolist() == [stack[-1]]
        assert len(reply) == len(stack)


def test_the_history_is_made_only_on_request(model, monkeypatch):
    """Without `needs_history` there is none, and layers start before the host knows the token."""
    monkeypatch.setattr(overlap, "is_async", lambda device: True)
    launched = []
    launch = overlap.launch_next_step

    def noted(*arguments):
        launched.append(launch(*arguments))
        return launched[-1]

    monkeypatch.setattr(overlap, "launch_next_step", noted)

    @dataclass(frozen=True)
    class Plain(ExitPolicy):
        def depths(self, step):
            assert step.history is None
            assert step.state is None
            assert step.costs is None
            return torch.full_like(step.phase, 2)

    model.generate(PROMPTS, Plain(), 6)
    assert launched
    assert all(launched)
    launched.clear()
    model.generate(PROMPTS, Listening(), 6)
    assert launched
    assert not any(launched)


def test_each_modality_has_the_state_of_its_policy(model):
    """A policy beside another one decides as it does alone, where their positions agree."""

    @dataclass(frozen=True)
    class Alternating(ExitPolicy):
        on: str = "speech"

        def begin(self, rows):
            return HistoryState(*torch.zeros(2, rows, dtype=torch.long))

        def update(self, step):
            return replace(step.state, tokens=step.state.tokens + step.is_on(self.on))

        def depths(self, step):
            shallow = step.is_on(self.on) & (step.state.tokens % 2 == 0)
            return torch.where(shallow, 2, step.full_depth)

    policy = ByModality(Alternating("text"), Alternating("speech"))
    assert not policy.needs_history
    assert ByModality(Static(2, "text"), Listening()).needs_history
    for output in model.generate(PROMPTS, policy, TOKENS):
        count = [0, 0]
        for modality, depth in zip(output.trace.modality, output.trace.depth, strict=True):
            count[modality] += 1
            assert depth == (2 if count[modality] % 2 == 0 else DEPTH)


@dataclass(frozen=True)
class Forgetful(ExitPolicy):
    """A policy with a fault."""

    fault: str = ""

    def begin(self, rows):
        if self.fault == "shape":
            return HistoryState(torch.zeros(rows + 1), torch.zeros(rows))
        if self.fault == "type":
            return [0] * rows
        if self.fault == "begin depends on rows":
            return HistoryState(torch.full((rows,), rows), torch.zeros(rows))
        return HistoryState(torch.zeros(rows), torch.zeros(rows))

    def update(self, step):
        state = step.state
        if self.fault == "in place":
            state.tokens.add_(1)
        if self.fault == "update depends on rows":
            return replace(state, tokens=state.tokens + step.position.sum())
        return replace(state, tokens=state.tokens + step.position)

    def depths(self, step):
        return torch.full_like(step.phase, step.full_depth)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("begin depends on rows", "rows must not depend on each other"),
        ("update depends on rows", "rows must not depend on each other"),
        ("in place", "changes the state in place"),
    ],
)
def test_check_policy_finds_a_wrong_state(fault, sentence):
    with pytest.raises(AssertionError, match=sentence):
        check_policy(Forgetful(fault))
    check_policy(Forgetful())


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("shape", r"keeps tokens of shape \(2,\) for 1 rows; the first dimension"),
        ("type", r"keeps \[0\]; a policy's state is a subclass of PolicyState, or None"),
    ],
)
def test_a_state_without_a_value_for_each_row_is_refused(model, fault, sentence):
    with pytest.raises(EepolicyError, match=sentence):
        model.generate([PROMPTS[0]], Forgetful(fault), 4)


def test_selected_rows_keep_their_statistics():
    from eepolicy import History

    columns = torch.arange(3)
    logits = [torch.tensor([0.0, float(i)]) for i in range(3)]
    history = History(columns, columns, columns, columns, columns > 0, logits)
    own = [history.select([row]).confidence.item() for row in (2, 0)]
    assert history.select([2, 0]).confidence.tolist() == own
    assert history.confidence[[2, 0]].tolist() == own  # computed in another order
    assert history.select([1]).token.tolist() == [1]
    step = Step(*[columns] * 5, 4, history)
    assert step.select([2, 0]).history.confidence.tolist() == own
    assert own == pytest.approx([torch.tensor([0.0, 2.0]).softmax(-1)[1].item(), 0.5])
