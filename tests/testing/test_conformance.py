"""Every class of the package passes the conformance checks."""

from __future__ import annotations

import pytest

from eepolicy import parse_policy
from eepolicy.decode.acceptance import ACCEPTANCE_RULES
from eepolicy.decode.fills import FILLS
from eepolicy.heads import LinearHead, LogitLens, LowRankHead, TunedLens
from eepolicy.model.families import FAMILIES
from eepolicy.policies import POLICIES
from eepolicy.testing import (
    check_acceptance,
    check_family,
    check_fill,
    check_head,
    check_policy,
)
from eepolicy.testing.configs import CONFIGS, small_config


@pytest.mark.parametrize("name", POLICIES.names())
def test_policies(name):
    check_policy(POLICIES.get(name))


@pytest.mark.parametrize(
    "spec",
    [
        "text=static@2",
        "both=spark:FE~@1",
        "text=full,speech=static@2",
        "text=entropy<2@2,speech=patience:2@[1,2]",
    ],
)
def test_policies_on_modalities(spec):
    check_policy(parse_policy(spec))


@pytest.mark.parametrize("name", FILLS.names())
def test_fills(name):
    check_fill(FILLS.get(name))


@pytest.mark.parametrize("name", ACCEPTANCE_RULES.names())
def test_acceptance_rules(name):
    check_acceptance(ACCEPTANCE_RULES.get(name))


@pytest.mark.parametrize("cls", [LogitLens, TunedLens, LinearHead, LowRankHead])
def test_heads(cls):
    check_head((lambda model: model.lens) if cls is LogitLens else cls)


@pytest.mark.parametrize("family", CONFIGS)
def test_families(family):
    check_family(small_config(family, layers=3))


def test_every_family_has_a_small_config():
    assert {small_config(f, 3).model_type for f in CONFIGS} == set(FAMILIES.names())
