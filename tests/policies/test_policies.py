"""Policies as pure objects, and their spec strings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import eepolicy
from eepolicy import (
    ByModality,
    Confidence,
    DriftRefresh,
    DynamicDraft,
    EepolicyError,
    Entropy,
    ExitPolicy,
    FullDepth,
    History,
    Margin,
    Modality,
    Oracle,
    Patience,
    Predictor,
    Random,
    Saturation,
    SparK,
    Static,
    Step,
    parse_policy,
    registry,
)
from eepolicy.decode.readout import LazyReadout, ReadoutSource

FULL = 20


def steps(phases: int, modality: Modality) -> Step:
    """One row for each phase of a chunk."""
    phase = torch.arange(phases)
    return Step(
        torch.full_like(phase, modality), torch.zeros_like(phase), phase, phase, phase, FULL
    )


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
    step = Step(torch.ones_like(phase), torch.zeros_like(phase), phase, phase, phase, full)
    depths = SparK(pattern, exit_depth).depths(step)
    assert np.isclose(depths.double().mean(), mean, atol=0.005)


def policies():
    depth = st.integers(1, FULL)
    on = st.sampled_from(["speech", "text", "both"])
    looks = depth | st.lists(depth, min_size=1, max_size=4, unique=True).map(
        lambda d: tuple(sorted(d))
    )
    threshold = st.floats(0, 12, allow_nan=False)
    patterns = st.sampled_from(["even", "odd", "triple"]) | st.text("FE", min_size=1, max_size=6)
    plain = st.one_of(
        st.just(FullDepth()),
        st.builds(Static, depth, on),
        st.builds(SparK, patterns, depth, on, st.booleans()),
        *(
            st.builds(p, threshold, looks, on)
            for p in (Entropy, Confidence, Margin, Saturation, Predictor)
        ),
        st.builds(Patience, st.integers(2, 5), looks, on),
        st.builds(Oracle, looks, on),
        depth.flatmap(
            lambda d: st.builds(Random, st.floats(d, FULL), st.just(d), on, st.integers(-99, 99))
        ),
    )
    below = st.integers(1, FULL - 1)
    drafts = st.builds(
        DynamicDraft,
        below | st.sets(below, min_size=1, max_size=4).map(lambda depths: tuple(sorted(depths))),
        on,
    )
    plain = plain | drafts | st.builds(DriftRefresh, threshold, below, on)
    text = st.builds(Static, depth, st.just("text")) | st.builds(
        Entropy, threshold, looks, st.just("text")
    )
    speech = st.builds(SparK, st.just("odd"), depth) | st.builds(Confidence, threshold, looks)
    return plain | st.builds(ByModality, text, speech)


def history_of_nothing(rows: int) -> History:
    """Before the first token."""
    zeros = torch.zeros(rows, dtype=torch.long)
    return History(zeros - 1, zeros, zeros, zeros, zeros > 0, [None] * rows)


@given(
    policies(),
    st.lists(
        st.tuples(st.sampled_from(Modality), *[st.integers(0, 50)] * 4), min_size=1, max_size=5
    ),
)
def test_policies_neither_read_nor_exit_below_min_depth(policy, rows):
    known = torch.tensor(rows).T
    min_depth = policy.min_depth(FULL)
    assert 1 <= min_depth <= FULL
    step = Step(*known, FULL, history_of_nothing(len(rows)) if policy.needs_history else None)
    step = replace(step, state=policy.begin(len(rows)))
    step = replace(step, state=policy.update(step))
    assert min_depth <= policy.depths(step).min()
    assert all(look >= min_depth for look in policy.candidate_depths(step))


@pytest.mark.parametrize("with_history", [False, True])
@pytest.mark.parametrize("with_drafts", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
def test_single_rows_are_the_selected_rows(rows, with_history, with_drafts):
    known = torch.randint(0, 2, (6, rows), generator=torch.Generator().manual_seed(rows))
    history = history_of_nothing(rows) if with_history else None
    step = Step(*known[:5], FULL, history, num_drafts=known[5] if with_drafts else None)
    for row, single in enumerate(step.single_rows()):
        expected = Step(*known[:5, row : row + 1], FULL)
        for name in ("modality", "chunk", "phase", "position", "ordinal"):
            assert torch.equal(getattr(single, name), getattr(expected, name))
        assert (single.num_drafts is not None) == with_drafts
        if with_drafts:
            assert single.num_drafts.tolist() == [int(known[5, row])]
        assert (single.history is not None) == with_history
        assert single.full_depth == FULL


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
def test_a_wrong_spec_is_refused_with_the_reason(spec, sentence):
    with pytest.raises(EepolicyError, match=sentence):
        parse_policy(spec)


@pytest.mark.parametrize(
    "policy",
    [
        Static(21),
        SparK("even", 21),
        Confidence(0.5, (3, 30)),
        Patience(2, 21),
        Random(20.0, 21),
    ],
    ids=repr,
)
def test_a_depth_that_the_model_does_not_have_is_refused(policy):
    with pytest.raises(EepolicyError, match="the model has depths 1 to 20"):
        policy.check(FULL)


def test_wrong_arguments_of_policies_are_refused():
    with pytest.raises(EepolicyError, match="on: expected 'speech', 'text', 'both'; got 'sound'"):
        Static(3, on="sound")
    with pytest.raises(EepolicyError, match=r"patterns are even, odd, triple, or .*; got 'quad'"):
        SparK("quad", 3)
    with pytest.raises(EepolicyError, match="rising depths"):
        Entropy(0.5, (5, 3))
    with pytest.raises(EepolicyError, match="count: expected 2 or more; got 1"):
        Patience(1, 3)
    for wrong in (0, 2.7, True, "3", None):
        for policy in (Static, Oracle, partial(Entropy, 0.5), partial(SparK, "even")):
            with pytest.raises(EepolicyError, match=r"exit_depths?: expected"):
                policy(wrong)
    for mean in (7.9, 20.1):
        with pytest.raises(EepolicyError, match="a mean depth from 8, its exit depth, to 20"):
            Random(mean, 8).check(FULL)
    for spec_string in ("text=full,speech=oracle@1", "text=oracle@1,speech=static@3"):
        with pytest.raises(EepolicyError, match="cannot be one of two policies"):
            parse_policy(spec_string).check(FULL)
    with pytest.raises(EepolicyError, match="acts on speech but was given for text"):
        ByModality(Static(3), Static(3)).check(FULL)


class Seen:
    """A readout with given statistics."""

    def __init__(self, entropy, confidence):
        self.entropy, self.confidence = torch.tensor(entropy), torch.tensor(confidence)


def looks_at(logits: dict[int, list], hidden: dict[int, list] | None = None, full=None) -> list:
    """Readouts of some depths, one after the other, from logits and hidden states by hand."""
    readouts: list[LazyReadout] = []
    for depth, values in logits.items():
        states = torch.tensor((hidden or logits)[depth], dtype=torch.float)
        read = {depth: torch.tensor(values, dtype=torch.float)}
        previous = readouts[-1] if readouts else None
        readouts.append(
            LazyReadout(
                depth, states, ReadoutSource(lambda _, d, rows, read=read: read[d]), previous, full
            )
        )
    return readouts


def test_readouts_against_arithmetic():
    (seen,) = looks_at({3: [[1.0, 3.0, 2.0], [0.0, 0.0, 5.0]]})
    p = torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, 5.0]]).double().exp()
    p = p / p.sum(-1, keepdim=True)
    assert seen.num_readouts == 0
    assert seen.top1.tolist() == [1, 2]
    expected = {
        "entropy": -(p * p.log()).sum(-1),
        "confidence": p.max(-1).values,
        "margin": torch.stack([p[0, 1] - p[0, 2], p[1, 2] - p[1, 0]]),
    }
    for name, value in expected.items():
        torch.testing.assert_close(getattr(seen, name).double(), value, rtol=0, atol=1e-6)
    assert seen.num_readouts == 1  # one head evaluation for all statistics


def test_patience_exits_when_depths_agree():
    step = steps(3, Modality.SPEECH)
    # the argmax tokens of three rows at depths 4, 6, 8, 10: 0 1 1 1, 2 2 0 0, 1 1 1 2
    ids = {4: [0, 2, 1], 6: [1, 2, 1], 8: [1, 0, 1], 10: [1, 0, 2]}
    seen = looks_at({d: torch.eye(3)[t].tolist() for d, t in ids.items()})

    def exits(policy):
        return [policy.should_exit(step, r.depth, r).tolist() for r in seen]

    assert exits(Patience(2, (4, 6, 8, 10))) == [
        [False, False, False],
        [False, True, True],
        [True, False, True],
        [True, True, False],
    ]
    assert exits(Patience(3, (4, 6, 8, 10)))[2:] == [[False, False, True], [True, False, False]]


def test_saturation_is_the_cosine_to_the_previous_depth_and_needs_no_head():
    step = steps(2, Modality.SPEECH)
    hidden = {4: [[1.0, 0.0], [1.0, 0.0]], 6: [[2.0, 0.0], [1.0, 1.0]]}
    first, second = looks_at({4: [[0.0], [0.0]], 6: [[0.0], [0.0]]}, hidden)
    policy = Saturation(0.8, (4, 6))  # cosines 1 and 0.71
    assert policy.should_exit(step, 4, first).tolist() == [False, False]
    assert policy.should_exit(step, 6, second).tolist() == [True, False]
    assert first.num_readouts == second.num_readouts == 0


def test_margin_and_oracle():
    step = steps(2, Modality.SPEECH)
    (full,) = looks_at({20: [[0.0, 9.0], [9.0, 0.0]]})
    (seen,) = looks_at({4: [[0.0, 2.0], [0.0, 2.0]]}, full=full)  # probabilities .119 and .881
    assert Margin(0.76, 4).should_exit(step, 4, seen).tolist() == [True, True]
    assert Margin(0.77, 4).should_exit(step, 4, seen).tolist() == [False, False]
    assert Oracle(4).should_exit(step, 4, seen).tolist() == [True, False]
    assert Oracle(4).needs_full_pass


def test_random_has_its_mean_depth_and_repeats():
    step = steps(4000, Modality.SPEECH)
    depths = Random(16.0, exit_depth=12).depths(step)
    assert set(depths.tolist()) == {12, FULL}
    # 4,000 draws of 12 or 20: the mean's standard error is 0.063
    assert abs(depths.double().mean() - 16.0) < 0.25
    assert torch.equal(Random(16.0, 12).depths(step), depths)
    assert not torch.equal(Random(16.0, 12, seed=1).depths(step), depths)
    assert Random(16.0, 12).depths(steps(9, Modality.TEXT)).tolist() == [FULL] * 9
    assert Random(20.0, 20).depths(step).unique().tolist() == [FULL]


def test_a_pattern_restarts_in_each_chunk_or_runs_on():
    # chunks of four and a pattern of three: phase, and ordinal among the speech tokens
    phase, ordinal = torch.tensor([0, 1, 2, 3] * 2), torch.arange(8)
    step = Step(torch.ones(8), torch.zeros(8), phase, ordinal, ordinal, FULL)
    restarting, running = parse_policy("spark:FEE@8"), parse_policy("spark:FEE~@8")
    assert restarting.depths(step).tolist() == [20, 8, 8, 20, 20, 8, 8, 20]
    assert running.depths(step).tolist() == [20, 8, 8, 20, 8, 8, 20, 8]
    assert torch.equal(SparK("triple", 8).depths(step), restarting.depths(step))


@dataclass(frozen=True)
class Mine(Static):
    """A policy of another package."""

    name = "mine"
    usage = "mine@DEPTH"
    example = "mine@7"


class Undeclared(ExitPolicy):
    """A policy that is no dataclass."""

    name = "plain"
    usage = example = "plain"
    summary = "full depth"

    def depths(self, step):
        return torch.full_like(step.phase, step.full_depth)

    @classmethod
    def from_spec(cls, rest):
        return cls()


def test_a_policy_by_entry_point(monkeypatch):
    """The policies of an installed package have spec strings."""
    points = [
        EntryPoint("mine", f"{__name__}:Mine", "eepolicy.policies"),
        EntryPoint("plain", f"{__name__}:Undeclared", "eepolicy.policies"),
    ]
    monkeypatch.setattr(
        registry,
        "entry_points",
        lambda group, name=None: [p for p in points if p.group == group and name in (None, p.name)],
    )
    assert parse_policy("mine@7") == Mine(7)
    assert parse_policy("text=mine@7") == Mine(7, on="text")
    with pytest.raises(EepolicyError, match="is no policy"):
        parse_policy("yours@7")
    for spec in ("plain", "both=plain"):
        assert isinstance(parse_policy(spec), Undeclared)
    with pytest.raises(EepolicyError, match="a dataclass with a field 'on'"):
        parse_policy("text=plain")


def test_thresholds_exit_on_their_own_modality_only():
    step = Step(
        *torch.tensor([[0, 1, 1], [0, 0, 0], [0, 1, 2], [0, 1, 2], [0, 0, 1]]), full_depth=FULL
    )
    seen = Seen([0.1, 0.1, 0.9], [0.9, 0.9, 0.2])
    assert Entropy(0.5, 14).should_exit(step, 14, seen).tolist() == [False, True, False]
    assert Confidence(0.5, 14).should_exit(step, 14, seen).tolist() == [False, True, False]
    assert Entropy(0.5, 14).candidate_depths(step) == tuple(range(14, 20))
    assert Entropy(0.5, 14).candidate_depths(steps(2, Modality.TEXT)) == ()
    assert Entropy(0.5, (3, 9)).depths(step).tolist() == [FULL] * 3


def test_by_modality_applies_each_policy_to_its_rows():
    policy = parse_policy("text=spark:even@5,speech=entropy<0.5@[7,9]")
    mixed = Step(
        *torch.tensor([[0, 1, 0], [0, 0, 0], [0, 1, 1], [0, 1, 2], [0, 0, 1]]), full_depth=FULL
    )
    assert policy.depths(mixed).tolist() == [20, 20, 5]
    assert policy.candidate_depths(mixed) == (7, 9)
    assert policy.should_exit(mixed, 7, Seen([0.1, 0.1, 0.1], [0, 0, 0])).tolist() == [
        False,
        True,
        False,
    ]
