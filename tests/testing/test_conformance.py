"""Every class of the package passes the conformance checks."""

from __future__ import annotations

import pytest

from eepolicy import EepolicyError
from eepolicy.decode.acceptance import ACCEPTANCE_RULES
from eepolicy.decode.fills import FILLS
from eepolicy.heads import KINDS, LinearHead
from eepolicy.model.families import FAMILIES
from eepolicy.policies import POLICIES
from eepolicy.testing import (
    check_acceptance,
    check_family,
    check_fill,
    check_head,
    check_policy,
)
from eepolicy.testing.configs import CONFIGS


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
    check_policy(spec)


@pytest.mark.parametrize("name", FILLS.names())
def test_fills(name):
    check_fill(FILLS.get(name))


@pytest.mark.parametrize("name", ACCEPTANCE_RULES.names())
def test_acceptance_rules(name):
    check_acceptance(ACCEPTANCE_RULES.get(name))


@pytest.mark.parametrize("name", KINDS.names())
def test_heads(name):
    check_head(name)


@pytest.mark.parametrize(
    "head", [LinearHead, lambda model: model.lens], ids=["LinearHead", "LogitLens"]
)
def test_heads_by_class_and_by_function(head):
    check_head(head)


@pytest.mark.parametrize("family", CONFIGS)
def test_families(family):
    check_family(family)


def test_every_combined_family_has_an_adapter():
    assert set(CONFIGS) <= set(FAMILIES.names())


def test_another_family_by_its_model_type():
    """Starcoder 2 has a window and biases; Doge is refused."""
    with pytest.raises(EepolicyError, match="model type 'doge' is refused: its attention selects"):
        check_family("doge")
    check_family("starcoder2", FAMILIES.get("mistral"))
    with pytest.raises(EepolicyError, match="transformers has no model type 'no-such'"):
        check_family("no-such")
