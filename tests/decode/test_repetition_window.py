"""The windowed repetition penalty."""

from __future__ import annotations

import pytest
import torch
from conftest import LAYOUT, tiny

from eepolicy import EepolicyError, HookedModel
from eepolicy.decode.repetition_window import WindowedRepetitionPenalty


def test_rejected_drafts_do_not_change_the_penalty():
    model = HookedModel(tiny("llama"), LAYOUT)
    prompt = torch.arange(6) + 10
    plain = model.generate(prompt, max_new_tokens=24)
    options = {"windowed_repetition_penalty": {"penalty": 8.0, "window": 5}, "max_new_tokens": 24}
    full = model.generate(prompt, **options)
    assert full.tokens.tolist() != plain.tokens.tolist()
    exact = model.generate(prompt, "both=static@2", accept="exact", **options)
    assert exact.tokens.tolist() == full.tokens.tolist()
    stock = model.model.generate(
        prompt[None],
        eos_token_id=LAYOUT.end,
        do_sample=False,
        max_new_tokens=24,
        logits_processor=[WindowedRepetitionPenalty(8.0, 5)],
    )
    assert stock[0, 6:].tolist() == full.tokens.tolist()


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (
            {"penalty": 0.0, "window": 8},
            "a penalty is above 0 and a window a number of tokens, at least 1; got 0",
        ),
        (
            {"penalty": 1.05, "window": 0},
            "a penalty is above 0 and a window a number of tokens, at least 1",
        ),
        ({"penalty": 1.05, "window": 8.5}, "a number of tokens, at least 1; got 1.05 and 8.5"),
        ({"penalty": "x", "window": 8}, "a dict with penalty and window, which are numbers; got"),
        ({"factor": 1.05}, "is a dict with penalty and window"),
        (1.05, "is a dict with penalty and window, which are numbers; got 1.05"),
    ],
)
def test_impossible_values_are_refused(value, match):
    model = HookedModel(tiny("llama"), LAYOUT)
    with pytest.raises(EepolicyError, match=match):
        model.generate(torch.arange(6), windowed_repetition_penalty=value, max_new_tokens=2)
