"""Scores of a given reply are those that decoding would have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from conftest import tiny
from torch import Tensor
from transformers import LogitsProcessor

from eepolicy import (
    EarlyExitConfig,
    EepolicyError,
    ExitPolicy,
    HookedModel,
    PolicyState,
    TokenLayout,
)
from eepolicy.harness.stop import StopTexts
from eepolicy.harness.teacher_forcing import check_scorable, forced_scores

TEXT = TokenLayout.text_only(60)


class Keep(LogitsProcessor):
    """Keeps the scores of each step."""

    def __init__(self) -> None:
        self.scores: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.scores.append(scores[0].clone())
        return scores


@dataclass(frozen=True)
class Count(PolicyState):
    steps: Tensor


@dataclass(frozen=True)
class Alternating(ExitPolicy):
    """Exits at depth 2 at every other step, and after even tokens; it keeps a state."""

    needs_history: ClassVar[bool] = True

    def begin(self, rows):
        return Count(torch.zeros(rows, dtype=torch.long))

    def update(self, step):
        return Count(step.state.steps + 1)

    def depths(self, step):
        early = (step.state.steps % 2 == 0) | (step.history.token % 2 == 0)
        return torch.where(early, 2, step.full_depth)


@pytest.mark.parametrize(
    "policy",
    [
        "full",
        "text=static@2",
        "text=entropy<3.5@[2,3,4]",
        "text=saturation>0.8@2",
        "text=patience:2@[1,2,3,4]",
        "text=random:4.0@2",
        "text=oracle@2",
        Alternating(),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_scores_are_those_of_decoding(name, policy):
    model, keep = HookedModel(tiny(name), TEXT), Keep()
    prompt = torch.arange(5, 14)
    out = model.generate(prompt, policy, max_new_tokens=12, logits_processor=[keep])
    ids = torch.cat([prompt, out.tokens])
    config = EarlyExitConfig(policy)
    [scores] = forced_scores(model, TEXT, config.policy, [ids], [len(out.tokens)])
    assert scores.depth == out.trace.depth.tolist()
    torch.testing.assert_close(scores.logits, torch.stack(keep.scores), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("policy", ["text=entropy<3.5@[2,3,4]", "text=patience:2@1", Alternating()])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_scores_do_not_depend_on_the_batch(name, policy):
    """Sequences of several lengths, up to beyond a sliding window."""
    model = HookedModel(tiny(name, dtype=torch.float64), TEXT)
    policy = EarlyExitConfig(policy).policy
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randint(60, (n,), generator=generator) for n in (4, 17, 2, 9)]
    numbers = [3, 5, 1, 8]
    together = forced_scores(model, TEXT, policy, sequences, numbers)
    assert len({depth for scores in together for depth in scores.depth}) > 1
    for ids, number, scores in zip(sequences, numbers, together, strict=True):
        [alone] = forced_scores(model, TEXT, policy, [ids], [number])
        assert scores.depth == alone.depth
        torch.testing.assert_close(scores.logits, alone.logits, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "options", [{"fill": "mask"}, {"fill": "propagate"}, {"accept": "top:3"}], ids=str
)
def test_options_without_defined_scores_are_refused(options):
    with pytest.raises(EepolicyError, match=r"log-likelihoods are defined for fill='catch_up'"):
        check_scorable(EarlyExitConfig("text=static@2", **options))


class Letters:
    """A tokenizer: one letter an id."""

    def batch_decode(self, rows):
        return ["".join(chr(97 + i) for i in row.tolist()) for row in rows]


def test_stop_texts_end_the_rows_that_contain_them():
    criterion = StopTexts(["cd", "z"], Letters(), start=3)
    ids = torch.tensor([[2, 3, 25, 0, 1, 2, 3], [2, 3, 25, 0, 1, 2, 2], [0, 0, 0, 25, 0, 0, 0]])
    assert criterion(ids, None).tolist() == [True, False, True]
    assert StopTexts([], Letters(), 0)(ids, None).tolist() == [False] * 3
