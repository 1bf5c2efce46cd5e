"""An error in a plug-in for several codebooks names it, and so does one about its results."""

from __future__ import annotations

import re

import pytest
import torch

from eepolicy import EepolicyError, ExitPolicy
from eepolicy.codebooks import CodebookPolicy, HookedCodebookModel, MissingCodes
from eepolicy.heads.base import ExitHead
from eepolicy.testing.codebooks import csm_config, random_csm

PROMPT = torch.tensor([7, 3, 21, 9])


@pytest.fixture(scope="module")
def stock():
    return random_csm(csm_config(layers=2, depth_layers=2))


@pytest.fixture(scope="module")
def model(stock):
    return HookedCodebookModel(stock)


def returning(base, method, result):
    """A plug-in of a class whose method returns or raises a result."""

    def call(self, *_):
        if isinstance(result, Exception):
            raise result
        return result

    return type("Broken", (base,), {method: call, "__module__": "elsewhere"})()


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (KeyError("nothing"), r"raised in the plug-in elsewhere\.Broken\.stops\(\)"),
        (torch.zeros(3), r"Broken\.stops\(\) returns a tensor \(1,\) of bool; it returned"),
        (True, r"Broken\.stops\(\) returns a tensor \(1,\) of bool; it returned True"),
    ],
)
def test_a_codebook_policy_is_named(model, result, message):
    expected = KeyError if isinstance(result, KeyError) else EepolicyError
    with pytest.raises(expected) as raised:
        model.generate(PROMPT, None, None, returning(CodebookPolicy, "stops", result))
    assert_says(raised.value, message)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (KeyError("nothing"), r"raised in the plug-in elsewhere\.Broken\.fill\(\)"),
        (torch.zeros(5).long(), r"fill\(\) returns a tensor \(1, 5\) of integers, 5 for each row"),
        (torch.zeros(1, 5), r"fill\(\) returns .* it returned a tensor \(1, 5\) of float32"),
    ],
)
def test_a_rule_for_missing_codes_is_named(model, result, message):
    expected = KeyError if isinstance(result, KeyError) else EepolicyError
    with pytest.raises(expected) as raised:
        model.generate(PROMPT, codebooks=2, missing=returning(MissingCodes, "fill", result))
    assert_says(raised.value, message)


@pytest.mark.parametrize("option", ["policy", "depth_policy"])
def test_an_exit_policy_is_named_when_it_begins(model, option):
    class Broken(ExitPolicy):
        def depths(self, step):
            return torch.full_like(step.phase, 1)

        def begin(self, rows):
            raise KeyError("nothing")

    with pytest.raises(KeyError) as raised:
        model.generate(PROMPT, **{option: Broken()})
    assert_says(raised.value, r"raised in the plug-in .*Broken\.begin\(\)")


def test_a_vocoder_is_named(model):
    out = model.generate(PROMPT, max_new_tokens=1)
    vocoder = returning(object, "decode", torch.full((4,), torch.nan))
    object.__setattr__(out, "vocoder", vocoder)
    with pytest.raises(EepolicyError, match=r"Broken\.decode\(\) returns finite samples"):
        _ = out.audio


def test_a_head_that_gives_nan_gives_no_codes(stock):
    class Broken(ExitHead):
        def logits(self, hidden, depth):
            return torch.full((*hidden.shape[:-1], 34), torch.nan, dtype=hidden.dtype)

    model = HookedCodebookModel(stock, heads=Broken())
    with pytest.raises(EepolicyError, match=r"nan at depth 1: the weights .* or the exit heads"):
        model.generate(PROMPT, "static@1", max_new_tokens=1)


def assert_says(error, message):
    """The text of an error and its notes match a pattern."""
    text = "\n".join([str(error), *getattr(error, "__notes__", [])])
    assert re.search(message, text), text
