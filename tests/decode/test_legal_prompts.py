"""Prompts in types that index nothing, or of another precision, and rules beside sampling."""

from __future__ import annotations

import pytest
import torch
from conftest import LAYOUT, tiny

from eepolicy import HookedModel
from eepolicy.decode.acceptance import AcceptAcoustic, AcceptGroups, AcceptTop
from eepolicy.decode.acceptance.base import Drafts
from eepolicy.speech.units import Units

PROMPT = torch.tensor([5, 9, 13])


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return HookedModel(tiny("llama"), layout=LAYOUT)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
def test_ids_of_any_integer_type(model, dtype):
    expected = model.generate(PROMPT, max_new_tokens=6).tokens.tolist()
    assert model.generate(PROMPT.to(dtype), max_new_tokens=6).tokens.tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_embeddings_of_another_precision(model, dtype):
    expected = model.generate(PROMPT, max_new_tokens=6).tokens.tolist()
    embedded = model.model.get_input_embeddings()(PROMPT)[None].to(dtype)
    assert model.generate(inputs_embeds=embedded, max_new_tokens=6).tokens.tolist() == expected


@pytest.mark.parametrize("rule", [AcceptAcoustic, AcceptGroups])
def test_sound_based_rules_use_only_the_units_of_the_model(rule):
    """The codebook has five rows more; their ids are text."""
    units = Units(torch.randn(LAYOUT.num_units + 5, 320))
    bound = rule(20.0).bind(LAYOUT, units)
    assert len(bound.codebook) == LAYOUT.num_units


def test_top_acceptance_rejects_a_token_of_probability_zero():
    scores = torch.full((2, 9), -torch.inf)
    scores[:, 4] = 1.0
    drafts = Drafts(torch.tensor([4, 0]), scores, scores[:, :0], True, torch.rand(2))
    assert AcceptTop(5).accepts(drafts).tolist() == [True, False]
