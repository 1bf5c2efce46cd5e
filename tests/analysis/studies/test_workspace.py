"""The folder that studies share."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import LAYOUT, tiny

from eepolicy import EepolicyError, HookedModel
from eepolicy.analysis.studies.base import Workspace
from eepolicy.speech.units import Units

QUESTIONS = [{"question": "What color is snow?", "keys": ["white"]}]


def model_with(seed: int = 0, **options) -> HookedModel:
    """A small model with a codebook of random sounds."""
    codebook = torch.randn(40, 320, generator=torch.Generator().manual_seed(seed))
    layout = replace(LAYOUT, **options.pop("layout", {}))
    return HookedModel(tiny("llama", **options), layout=layout, vocoder=Units(codebook))


@pytest.mark.parametrize(
    ("other", "questions", "name"),
    [
        (dict(seed=1), QUESTIONS, "units"),
        (dict(layout={"speech_chunk": 9}), QUESTIONS, "layout"),
        (dict(dtype=torch.bfloat16), QUESTIONS, "numbers"),
        ({}, [{"question": "What color is snow?", "keys": ["black"]}], "questions"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_settings_and_questions_are_refused(tmp_path, other, questions, name):
    Workspace.open(model_with(), QUESTIONS, tmp_path)
    Workspace.open(model_with(), QUESTIONS, tmp_path)
    with pytest.raises(EepolicyError, match=f"measurements with another .*{name}"):
        Workspace.open(model_with(**other), questions, tmp_path)
