"""Combinations of policy, fill, acceptance rule and family: every pair, and all of them."""

from __future__ import annotations

from functools import cache
from itertools import combinations, product

import pytest
from conftest import CORE_FAMILIES, own_plugins

from eepolicy import EarlyExitConfig, EepolicyError, HookedModel
from eepolicy.decode.acceptance import ACCEPTANCE_RULES
from eepolicy.decode.fills import FILLS
from eepolicy.policies import POLICIES, FullDepth
from eepolicy.testing.acceptance import RandomCodebook, check_verified
from eepolicy.testing.configs import CONFIGS, small_config
from eepolicy.testing.decoding import check_decoding
from eepolicy.testing.models import LAYOUT, random_model
from eepolicy.testing.steps import equip

LAYERS = 3
TOKENS = 8
#: one spec for each policy, for three layers
SPECS = {
    "full": "full",
    "static": "both=static@1",
    "spark": "both=spark:triple@1",
    "entropy": "both=entropy<2.5@1",
    "confidence": "both=confidence>0.3@1",
    "margin": "both=margin>0.1@1",
    "saturation": "both=saturation>0.5@1",
    "patience": "both=patience:2@1",
    "drift": "both=drift>0.3@1",
    "predictor": "both=predictor>0.5@1",
    "draft": "both=draft:2@1",
    "dynamic-draft": "both=dynamic-draft@[1,2]",
    # no token of these models is a unit of the shipped file; tests/policies/test_unit_classes.py
    # has exits
    "steady": "both=steady:pocket@1",
    "silence": "both=silence:pocket@1",
    "random": "both=random:2.0@1",
    "oracle": "both=oracle@1",
    "by modality": "text=static@2,speech=spark:odd@1",
}

Combination = tuple[str, str, str, str]


def is_allowed(options: tuple[str, str, str]) -> bool:
    """Whether policy, fill and acceptance rule go together."""
    try:
        EarlyExitConfig(*options)
    except EepolicyError:
        return False
    return True


def all_combinations() -> list[Combination]:
    rules = [ACCEPTANCE_RULES.get(name).example for name in ACCEPTANCE_RULES.names()]
    allowed = filter(is_allowed, product(SPECS.values(), FILLS.names(), rules))
    return [(*options, family) for options in allowed for family in CONFIGS]


def pairs(combination: Combination) -> set[tuple[tuple[int, str], tuple[int, str]]]:
    return set(combinations(enumerate(combination), 2))


def pairwise(every: list[Combination]) -> list[Combination]:
    """A covering array: combinations that have every pair, chosen greedily."""
    of = {combination: pairs(combination) for combination in every}
    missing = set().union(*of.values())
    chosen = []
    while missing:
        best = max(every, key=lambda combination: len(of[combination] & missing))
        chosen.append(best)
        missing -= of[best]
    return chosen


EVERY = all_combinations()
PAIRWISE = pairwise(EVERY)


@cache
def model_of(family: str) -> HookedModel:
    stock = random_model(small_config(family, LAYERS))
    model = HookedModel(stock, layout=LAYOUT, vocoder=RandomCodebook())
    equip(model, FullDepth())
    return model


def check_combination(combination: Combination) -> None:
    model, config = model_of(combination[3]), EarlyExitConfig(*combination[:3])
    bound = config.accept.bind(LAYOUT, model.vocoder)
    outputs = check_decoding(
        ", ".join(combination),
        model,
        policy=config.policy,
        fill=config.fill,
        accept=config.accept,
        new_tokens=TOKENS,
    )
    for output in outputs:
        check_verified(config.accept, bound, model, output)


def test_every_policy_is_in_the_matrix():
    assert set(SPECS) == {*own_plugins(POLICIES), "by modality"}


def test_the_covering_array_has_every_pair_with_few_combinations():
    assert set().union(*map(pairs, PAIRWISE)) == set().union(*map(pairs, EVERY))
    # policies and families alone make 110 pairs
    assert len(PAIRWISE) < 1.3 * len(SPECS) * len(CONFIGS) < len(EVERY)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(
            name,
            marks=() if name.removesuffix("_text") in CORE_FAMILIES else pytest.mark.slow,
        )
        for name in CONFIGS
    ],
)
def test_every_pair(family):
    for combination in PAIRWISE:
        if combination[3] == family:
            check_combination(combination)


@pytest.mark.exhaustive
@pytest.mark.parametrize("combination", EVERY, ids=", ".join)
def test_the_whole_matrix(combination):
    check_combination(combination)
