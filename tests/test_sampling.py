"""Each family and each other combination of parameters runs in `make test`."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampling import is_sampled, mark_unsampled


class Case:
    """What the sampling reads of a test."""

    def __init__(self, name: str, params: dict, exhaustive: bool = False) -> None:
        self.nodeid, self.callspec = name, SimpleNamespace(params=params)
        self.exhaustive = exhaustive

    def get_closest_marker(self, name: str) -> bool:
        return name == "exhaustive" and self.exhaustive

    def add_marker(self, marker: pytest.MarkDecorator) -> None:
        self.exhaustive |= marker.name == "exhaustive"


@given(st.integers(1, 15), st.integers(1, 15), st.integers(0, 2**32))
def test_every_family_and_every_combination_is_sampled(families, others, shift):
    cases = [
        case
        for case in product(range(families), range(others))
        if is_sampled(*case, families, others, shift)
    ]
    assert len(cases) == max(families, others)
    assert {family for family, _ in cases} == {*range(families)}
    assert {other for _, other in cases} == {*range(others)}


def test_products_are_sampled_and_lists_are_not():
    policies, options = ["full", "static@3"], [{"fill": "mask"}, {}, {"seed": 1}]
    product_of_three = [
        Case(f"a[{i}]", {"family": f, "policy": p, "options": o})
        for i, (f, p, o) in enumerate(product("wxyz", policies, options))
    ]
    pairs = [Case(f"b[{f}]", {"family": f, "kind": f * 2}) for f in "wxy"]
    families = [Case(f"c[{f}]", {"family": f}) for f in "wxyz"]
    others = [Case(f"d[{i}]", {"options": o}) for i, o in enumerate(options)]
    mark_unsampled([*product_of_three, *pairs, *families, *others])
    left = [case for case in product_of_three if not case.exhaustive]
    assert len(left) == 6
    assert {case.callspec.params["family"] for case in left} == {*"wxyz"}
    assert not any(case.exhaustive for case in (*pairs, *families, *others))


def test_cases_already_marked_exhaustive_are_not_sampled():
    cases = [Case(f"a[{f}{p}]", {"family": f, "p": p}, f == "w") for f, p in product("wxy", "12")]
    mark_unsampled(cases)
    assert [case.exhaustive for case in cases[:2]] == [True, True]
    assert {c.callspec.params["family"] for c in cases if not c.exhaustive} == {*"xy"}
