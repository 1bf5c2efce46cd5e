"""Colours and markers of policies."""

from __future__ import annotations

import pytest

from eepolicy.analysis.style import OTHER_COLOURS, OTHER_MARKERS, families, family
from eepolicy.policies import POLICIES


def test_every_policy_has_the_style_of_its_class():
    for entry in POLICIES.entries():
        if entry.name in ("full", "static", "entropy", "random"):
            cls = POLICIES.get(entry.name)
            assert family(entry.example) == (cls.colour, cls.marker)
    assert family("spark:even@12") == ("#009E73", "o")
    assert family("spark:odd@12") == ("#009E73", "D")
    assert family("spark:triple@12") == ("#009E73", "^")
    assert family("spark:FEEE@12") == ("#009E73", "p")
    assert family("both=static@12") == family("static@16")
    assert family("text=static@12") == family("text=full,speech=static@3") == ("#0072B2", "v")


def test_built_in_policies_look_different():
    specs = [entry.example for entry in POLICIES.entries() if "~" not in entry.example]
    assert len(set(families(specs))) == len(specs)


def test_user_defined_policies_have_distinct_styles():
    """By name: the same in every figure, and different in one figure."""
    specs = [f"{name}:2@12" for name in ("mine", "yours", "middle", "late-exit", "skip_some")]
    styles = families(specs)
    assert len(set(styles)) == len(specs)
    assert styles[0] == family("mine:2@12") == family("both=mine:7@3")
    assert all(c in OTHER_COLOURS and m in OTHER_MARKERS for c, m in styles)
    # names with the same colour and marker get another style
    many = [f"{letter}{other}@1" for letter in "abcdefgh" for other in "stuvw"]
    assert len(set(families(many))) == len(many)
    few = families([f"{letter}@1" for letter in "abcdefg"])
    assert len({colour for colour, _ in few}) == len(few) == len(OTHER_COLOURS)


@pytest.mark.parametrize("name", ["static", "entropy<0.5", "mine:2", "random:3"])
def test_depths_of_a_sweep_have_distinct_styles_in_one_colour(name):
    styles = families([f"{name}@{depth}" for depth in range(6, 20)])
    assert len(set(styles)) == len(styles)
    assert len({colour for colour, _ in styles}) == 1
