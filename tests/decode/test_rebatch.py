"""Rebatching changes costs, never tokens."""

from __future__ import annotations

import numpy as np
import pytest
from decoding import PROMPTS
from hypothesis import assume, given
from hypothesis import strategies as st

from eepolicy.decode.measure import NUM_POSITIONS
from eepolicy.decode.rebatch import MIN_SAVING, LayerCosts


@pytest.mark.parametrize(
    "policy", ["random:4.0@2", "text=static@5,speech=margin>0.1@[2,4]", "entropy<2.5@2"]
)
def test_rebatching_changes_costs_only(hooked, policy):
    """Tokens and depths stay; with "always" all rows of a step run equally deep."""
    alone = hooked.generate(PROMPTS, policy, max_new_tokens=20)
    for rebatch in ("always", 0.5, 1.0, "auto"):
        together = hooked.generate(PROMPTS, policy, max_new_tokens=20, rebatch=rebatch)
        for left, right in zip(together, alone, strict=True):
            assert left.tokens.tolist() == right.tokens.tolist(), rebatch
            for name in ("depth", "readouts", "since_refresh"):
                ours, expected = (getattr(out.trace, name) for out in (left, right))
                assert np.array_equal(ours, expected), (rebatch, name)
        if rebatch == "always":
            steps = min(len(out.trace) for out in together)
            calls = np.stack([out.trace.layer_calls[:steps] for out in together])
            assert (calls == calls[0]).all()


COSTS = st.lists(st.integers(0, 50), min_size=len(NUM_POSITIONS), max_size=len(NUM_POSITIONS))


@given(
    steps=COSTS,
    stay=st.integers(1, 8),
    left=st.integers(1, 8),
    wide=st.integers(1, 5),
    missing=st.integers(1, 5),
    gathered=st.integers(0, 2),
)
def test_the_cheaper_choice_by_measured_costs(steps, stay, left, wide, missing, gathered):
    seconds = np.cumsum([1, *steps])[1:] / 1000
    costs = LayerCosts(NUM_POSITIONS, tuple(seconds), gather_seconds=0.002)

    def of(vectors: int) -> float:
        if vectors >= NUM_POSITIONS[-1]:
            return seconds[-1] * vectors / NUM_POSITIONS[-1]
        i = max(i for i, known in enumerate(NUM_POSITIONS) if known <= vectors)
        share = (vectors - NUM_POSITIONS[i]) / (NUM_POSITIONS[i + 1] - NUM_POSITIONS[i])
        return seconds[i] + share * (seconds[i + 1] - seconds[i])

    synchronised = of((stay + left) * max(wide, missing)) + of(stay + left)
    waited = of(stay * wide) + of((stay + left) * (missing + 1)) + gathered * 0.002
    assume(abs(MIN_SAVING * synchronised - waited) > 1e-9)
    chosen = costs.favours_running_on((stay, left), (wide, missing), gathered)
    assert chosen == (MIN_SAVING * synchronised < waited)


def test_layers_are_timed_once_a_model(hooked):
    costs = hooked.layer_costs()
    assert costs.num_positions == NUM_POSITIONS
    assert all(0 < seconds < 10 for seconds in costs.seconds)
    assert 0 <= costs.gather_seconds < 10
    assert hooked.layer_costs() is costs
    assert hooked.to("cpu").layer_costs() is not costs


def test_auto_rebatching_follows_the_costs(hooked):
    """If a layer costs the same for any number of rows, "auto" runs all rows at once, and so on."""
    policy = "random:4.0@2"
    calls = {}
    flat, steep = (1.0,) * len(NUM_POSITIONS), (1.0, 1.0, *(9.0,) * (len(NUM_POSITIONS) - 2))
    costs = {
        "any number at the cost of one": LayerCosts(NUM_POSITIONS, flat),
        "more than two are dear": LayerCosts(NUM_POSITIONS, steep),
        "and gathering costs more": LayerCosts(NUM_POSITIONS, steep, gather_seconds=1e3),
    }
    for name, known in costs.items():
        hooked.measured_costs[False] = known
        outs = hooked.generate(PROMPTS, policy, max_new_tokens=32, rebatch="auto")
        calls[name] = sum(int(out.trace.layer_calls.sum()) for out in outs)
    always, never = (
        hooked.generate(PROMPTS, policy, max_new_tokens=32, rebatch=rebatch)
        for rebatch in ("always", "never")
    )
    most, fewest = (sum(int(o.trace.layer_calls.sum()) for o in outs) for outs in (always, never))
    flat, steep, gathered = calls.values()
    assert flat == most
    assert fewest <= steep < gathered < most
