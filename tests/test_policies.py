"""Policies as pure objects, and their spec strings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import eepolicy
from eepolicy import (
    ByModality,
    Confidence,
    EepolicyError,
    Entropy,
    FullDepth,
    Modality,
    SparK,
    Static,
    Step,
    parse_policy,
)

FULL = 20


def steps(phases: int, modality: Modality) -> Step:
    """One row for each phase of a chunk."""
    phase = torch.arange(phases)
    return Step(torch.full_like(phase, modality), torch.zeros_like(phase), phase, phase, FULL)


# By hand from the paper: Even L l L l, Odd l L l L, Triple L l l, and its average depths.
@pytest.mark.parametrize(
    ("pattern", "exit_depth", "expected"),
    [
        ("even", 8, [20, 8, 20, 8, 20, 8, 20]),
        ("odd", 8, [8, 20, 8, 20, 8, 20, 8]),
        ("triple", 8, [20, 8, 8, 20, 8, 8, 20]),
    ],
)
def test_schedules(pattern, exit_depth, expected):
    assert SparK(pattern, exit_depth).depths(steps(7, Modality.SPEECH)).tolist() == expected
    assert SparK(pattern, exit_depth).depths(steps(7, Modality.TEXT)).tolist() == [FULL] * 7
    both = SparK(pattern, exit_depth, on="both")
    assert both.depths(steps(7, Modality.TEXT)).tolist() == expected


@pytest.mark.parametrize(
    ("pattern", "full", "exit_depth", "chunk", "mean"),
    [
        ("even", 28, 22, 4, 25.0),
        ("odd", 28, 22, 4, 25.0),
        ("triple", 28, 22, 4, 25.0),
        ("even", 40, 36, 26, 38.0),
        ("triple", 40, 37, 26, 38.04),
    ],
)
def test_mean_depths_of_the_paper(pattern, full, exit_depth, chunk, mean):
    phase = torch.arange(chunk)
    step = Step(torch.ones_like(phase), torch.zeros_like(phase), phase, phase, full)
    depths = SparK(pattern, exit_depth).depths(step)
    assert np.isclose(depths.double().mean(), mean, atol=0.005)


def policies():
    depth = st.integers(1, FULL)
    on = st.sampled_from(["speech", "text", "both"])
    looks = depth | st.lists(depth, min_size=1, max_size=4, unique=True).map(
        lambda d: tuple(sorted(d))
    )
    threshold = st.floats(0, 12, allow_nan=False)
    plain = st.one_of(
        st.just(FullDepth()),
        st.builds(Static, depth, on),
        st.builds(SparK, st.sampled_from(["even", "odd", "triple"]), depth, on),
        st.builds(Entropy, threshold, looks, on),
        st.builds(Confidence, threshold, looks, on),
    )
    text = st.builds(Static, depth, st.just("text")) | st.builds(
        Entropy, threshold, looks, st.just("text")
    )
    speech = st.builds(SparK, st.just("odd"), depth) | st.builds(Confidence, threshold, looks)
    return plain | st.builds(ByModality, text, speech)


@given(policies())
def test_spec_and_repr_round_trip(policy):
    assert parse_policy(policy.spec) == policy
    assert eval(repr(policy), vars(eepolicy)) == policy
    policy.check(FULL)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("", "is no policy; a policy is one of"),
        ("spark", "is no policy"),
        ("spark:quad@3", "is no policy"),
        ("spark:even@-1", "is no policy"),
        ("static@x", "is no policy"),
        ("entropy<0.5", "is no policy"),
        ("entropy>0.5@3", "is no policy"),
        ("speech=static@3,speech=static@4", "names speech twice"),
        ("both=static@3,text=full", "there can be no other term"),
    ],
)
def test_a_wrong_spec_gets_a_sentence(spec, sentence):
    with pytest.raises(EepolicyError, match=sentence):
        parse_policy(spec)


@pytest.mark.parametrize(
    "policy",
    [Static(0), Static(21), SparK("even", 21), Entropy(0.5, 0), Confidence(0.5, (3, 30))],
    ids=repr,
)
def test_a_depth_that_the_model_does_not_have_is_refused(policy):
    with pytest.raises(EepolicyError, match="the model has depths 1 to 20"):
        policy.check(FULL)


def test_other_mistakes_get_a_sentence():
    with pytest.raises(EepolicyError, match="a policy acts on speech, text, both; got 'sound'"):
        Static(3, on="sound").check(FULL)
    with pytest.raises(EepolicyError, match="patterns are even, odd, triple; got 'quad'"):
        SparK("quad", 3).check(FULL)
    with pytest.raises(EepolicyError, match="rising depths"):
        Entropy(0.5, (5, 3)).check(FULL)
    with pytest.raises(EepolicyError, match="acts on speech but was given for text"):
        ByModality(Static(3), Static(3)).check(FULL)


class Seen:
    """A readout with given statistics."""

    def __init__(self, entropy, confidence):
        self.entropy, self.confidence = torch.tensor(entropy), torch.tensor(confidence)


def test_thresholds_look_at_their_own_modality_only():
    step = Step(*torch.tensor([[0, 1, 1], [0, 0, 0], [0, 1, 2], [0, 1, 2]]), full_depth=FULL)
    seen = Seen([0.1, 0.1, 0.9], [0.9, 0.9, 0.2])
    assert Entropy(0.5, 14).exits(step, 14, seen).tolist() == [False, True, False]
    assert Confidence(0.5, 14).exits(step, 14, seen).tolist() == [False, True, False]
    assert Entropy(0.5, 14).looks(step) == tuple(range(14, 20))
    assert Entropy(0.5, 14).looks(steps(2, Modality.TEXT)) == ()
    assert Entropy(0.5, (3, 9)).depths(step).tolist() == [FULL] * 3


def test_by_modality_asks_each_for_its_own():
    policy = parse_policy("text=spark:even@5,speech=entropy<0.5@[7,9]")
    mixed = Step(*torch.tensor([[0, 1, 0], [0, 0, 0], [0, 1, 1], [0, 1, 2]]), full_depth=FULL)
    assert policy.depths(mixed).tolist() == [20, 20, 5]
    assert policy.looks(mixed) == (7, 9)
    assert policy.exits(mixed, 7, Seen([0.1, 0.1, 0.1], [0, 0, 0])).tolist() == [False, True, False]
