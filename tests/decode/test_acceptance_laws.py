"""Distributions that the rules for sampled drafts promise, by enumeration on a small vocabulary."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from enumeration import GRID, pass_probabilities, sampled, stay_probabilities, token_law
from hypothesis import given, settings
from hypothesis import strategies as st

from eepolicy.decode.acceptance import (
    AcceptBlock,
    AcceptGroups,
    AcceptSampling,
    AcceptTolerance,
)

seeds = st.integers(0, 10_000)


def two_laws(seed: int, vocab: int) -> torch.Tensor:
    """p and q, (2, vocab), with some tokens that one of them all but excludes."""
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(2, vocab, generator=generator)).softmax(-1)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 2 / GRID) -> None:
    """A sum of probabilities of acceptance is exact to 1 / GRID."""
    torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=tolerance)


@settings(max_examples=25)
@given(seed=seeds, tolerance=st.sampled_from([0.0, 0.05, 0.4, 1.0]))
def test_tolerance_moves_the_distribution_by_at_most_the_tolerance(seed, tolerance):
    p, q = two_laws(seed, 6)
    rule = AcceptTolerance(tolerance)
    stays = [min(1.0, min(1.0, float(a / b)) + tolerance) for a, b in zip(p, q, strict=True)]
    close(stay_probabilities(rule, p, q), torch.tensor(stays))
    law = token_law(rule, p, q)
    distance = float((law - p).abs().sum()) / 2
    assert distance <= tolerance + 2 / GRID
    if tolerance == 0:
        close(law, p)
    if tolerance == 1:
        close(law, q)
    if tolerance == 0.4:
        assert distance > 0.01  # the rule is not lossless


VOCAB = 3
#: longest block
LENGTH = 3


def tables(seed: int) -> dict[tuple[int, ...], torch.Tensor]:
    """p and q, (2, vocab), after each prefix."""
    prefixes = [x for n in range(LENGTH + 1) for x in product(range(VOCAB), repeat=n)]
    return {prefix: two_laws(seed + 7 * i, VOCAB) for i, prefix in enumerate(prefixes)}


def ends_at_zero(path: tuple[int, ...]) -> bool:
    """A block whose length depends on its drafts, as with an adaptive policy."""
    return path[-1] == 0


def leaves(ends) -> list[tuple[int, ...]]:
    """The drafts of all possible blocks."""
    blocks = [x for n in range(1, LENGTH + 1) for x in product(range(VOCAB), repeat=n)]
    return [
        x
        for x in blocks
        if (len(x) == LENGTH or ends(x)) and not any(ends(x[:n]) for n in range(1, len(x)))
    ]


def block_law(table, ends) -> tuple[torch.Tensor, float]:
    """Law of the first tokens of a reply, (vocab,) * (LENGTH + 1), and the mean number kept."""
    law = torch.zeros((VOCAB,) * (LENGTH + 1), dtype=torch.double)
    mean = 0.0
    for path in leaves(ends):
        p, q = torch.stack([table[path[:i]] for i in range(len(path))], 1)
        drafts = sampled(torch.tensor(path), p, q, torch.ones(len(path)))
        share = float(q[range(len(path)), path].double().prod())
        passes = pass_probabilities(AcceptBlock(), drafts)
        longer_fail = 1.0
        for kept in range(len(path), -1, -1):
            probability = longer_fail * (passes[kept - 1] if kept else 1.0)
            longer_fail *= 1 - passes[kept - 1] if kept else 1.0
            mean += share * probability * kept
            if kept == len(path):
                following = table[path][0]
            else:
                following = AcceptBlock().replacement_scores(drafts, kept).softmax(-1)
            for token in range(VOCAB):
                start = (*path[:kept], token)
                weight = share * probability * float(following[token])
                law[start] += weight * continued(table, start)
    return law, mean


def continued(table, start: tuple[int, ...]) -> torch.Tensor:
    """The full model's law of the tokens that follow, up to LENGTH + 1 tokens in all."""
    if len(start) == LENGTH + 1:
        return torch.ones((), dtype=torch.double)
    law = table[start][0].double()
    return torch.stack([law[x] * continued(table, (*start, x)) for x in range(VOCAB)])


@pytest.mark.parametrize("ends", [lambda path: False, ends_at_zero], ids=["fixed", "adaptive"])
@pytest.mark.parametrize("seed", range(4))
def test_block_verification_is_lossless_and_keeps_no_fewer_drafts(seed, ends):
    table = tables(seed)
    law, mean = block_law(table, ends)
    # a bisection is exact to 2^-24, and float32 probabilities to about 1e-7
    close(law, continued(table, ()), 1e-6)
    token_by_token = 0.0  # expected number of drafts that speculative sampling keeps
    for path in leaves(ends):
        stays = share = 1.0
        kept = 0.0
        for i, token in enumerate(path):
            p, q = table[path[:i]].double()[:, token].tolist()
            share *= q
            stays *= min(1.0, p / q)
            kept += stays
        token_by_token += share * kept
    assert mean >= token_by_token - 1e-6


def test_the_example_of_the_block_verification_paper():
    """Two tokens, two drafts: 11/9 drafts stay, and 10/9 with speculative sampling."""
    p, q = torch.tensor([[1 / 3, 2 / 3]] * 2), torch.tensor([[2 / 3, 1 / 3]] * 2)
    means = {}
    for rule in (AcceptBlock(), AcceptSampling()):
        mean = 0.0
        for path in product(range(2), repeat=2):
            drafts = sampled(torch.tensor(path), p, q, torch.ones(2))
            share = float(q[[0, 1], list(path)].prod())
            first, second = (
                pass_probabilities(rule, drafts)
                if rule.is_joint
                else stay_probabilities(rule, p[0], q[0])[list(path)].tolist()
            )
            if rule.is_joint:
                mean += share * (2 * second + (1 - second) * first)
            else:
                mean += share * (first + first * second)
        means[rule.name] = mean
    assert means["block"] == pytest.approx(11 / 9, abs=1e-5)
    assert means["sampling"] == pytest.approx(10 / 9, abs=2 / GRID)


#: ids 0 and 1 are text; units 0 to 5 have sounds on a line
SOUNDS = torch.tensor([[0.0], [1.0], [2.0], [5.0], [5.5], [9.0]])
FIRST = 2


def explicit_groups(distance: float) -> list[list[int]]:
    """The ids of each group; each text id is a separate group."""
    groups = [[0], [1]]
    for a in SOUNDS[:, 0].tolist():
        near = [i for i, b in enumerate(SOUNDS[:, 0].tolist()) if abs(a - b) <= distance]
        groups.append([FIRST + i for i in near])
    return groups


@settings(max_examples=25)
@given(seed=seeds, distance=st.sampled_from([0.0, 0.7, 1.5, 4.0, 20.0]))
def test_groups_have_the_full_models_distribution(seed, distance):
    """Against loops over drafts, over the groups that each represents, and over replacements."""
    p, q = two_laws(seed, 8)
    groups = explicit_groups(distance)
    of = [[k for k, ids in enumerate(groups) if x in ids] for x in range(8)]

    def masses(law):
        return [sum(float(law[x]) / len(of[x]) for x in ids) for ids in groups]

    mass, draft_mass = masses(p), masses(q)
    stays = [sum(min(1.0, mass[k] / draft_mass[k]) for k in of[x]) / len(of[x]) for x in range(8)]
    rule = AcceptGroups(distance, SOUNDS, FIRST)
    close(stay_probabilities(rule, p, q), torch.tensor(stays))
    residual = [max(a - b, 0.0) for a, b in zip(mass, draft_mass, strict=True)]
    rejected = 1 - sum(map(min, mass, draft_mass))
    law, by_group = q.double() * torch.tensor(stays), torch.zeros(len(groups)).double()
    for k, ids in enumerate(groups):
        by_group[k] += min(mass[k], draft_mass[k]) + residual[k] / sum(residual) * rejected
        for x in ids:
            within = float(p[x]) / len(of[x]) / mass[k]
            law[x] += rejected * residual[k] / sum(residual) * within
    close(token_law(rule, p, q), law)
    # the group that a draft, or its replacement, represents
    close(by_group, torch.tensor(mass), 1e-6)
    if distance == 0:
        close(law, p, 1e-6)


@settings(max_examples=25)
@given(seed=seeds)
def test_separate_groups_keep_their_probabilities(seed):
    """Groups 0-2, 3-4 and 5 do not overlap: the tokens show the law of their groups."""
    p, q = two_laws(seed, 8)
    sounds = torch.tensor([[0.0], [0.5], [1.0], [5.0], [5.5], [9.0]])
    law = token_law(AcceptGroups(1.0, sounds, FIRST), p, q)
    for ids in ([0], [1], [2, 3, 4], [5, 6], [7]):
        close(law[ids].sum(), p[ids].sum())
    stays, token_stays = (
        stay_probabilities(rule, p, q)
        for rule in (AcceptGroups(1.0, sounds, FIRST), AcceptSampling())
    )
    assert float((q * stays).sum()) >= float((q * token_stays).sum()) - 2 / GRID


def test_groups_of_a_large_codebook_are_made_in_parts():
    """Beyond the number of rows at a time, against distances of a plain loop."""
    sounds = torch.arange(2500.0)[:, None]
    rule = AcceptGroups(2.0, sounds, 0)
    groups, units = rule._groups(sounds.device)
    assert units == slice(0, 2500)
    dense = groups.members.to_dense()
    assert torch.equal(dense, ((sounds - sounds.T).abs() <= 2).float())
    assert groups.counts[[0, 1, 2, 2499]].tolist() == [3, 4, 5, 3]
