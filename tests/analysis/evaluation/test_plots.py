"""The Pareto front against its definition."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from eepolicy.analysis.evaluation.plots import pareto


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12),
    st.booleans(),
)
def test_the_front_is_what_nothing_beats(points, higher):
    costs, values = zip(*points, strict=True)
    sign = 1 if higher else -1
    beaten = [
        any(
            c <= costs[i] and sign * v >= sign * values[i] and (c, v) != points[i]
            for c, v in points
        )
        for i in range(len(points))
    ]
    front = pareto(costs, values, higher)
    assert {points[i] for i in front} == {p for p, b in zip(points, beaten, strict=True) if not b}
    assert [costs[i] for i in front] == sorted({costs[i] for i in front})
