"""Conformance checks of exit policies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from eepolicy.decode.acceptance import AcceptExact
from eepolicy.policies import ExitPolicy, PolicyState, parse_policy
from eepolicy.policies.base import MODALITIES
from eepolicy.testing.decoding import check_decoding
from eepolicy.testing.models import random_llama
from eepolicy.testing.report import (
    check_value_object,
    instances_of,
    require,
    run_checks,
)
from eepolicy.testing.steps import FULL_DEPTHS, equip, full_depths, least_depth, readouts, steps


def check_policy(policy: ExitPolicy | type[ExitPolicy] | str) -> None:
    """Check what the decoder relies on in an exit policy.

    The checks need no weights: steps, readouts and models are small and random, with fixed seeds.
    A policy of a package calls this in a test of its own.

    Args:
        policy: a policy, its spec string, or a class that declares spec strings; its examples are
            checked then.

    Raises:
        AssertionError: with the class, the check and what was seen.
        Exception: of the policy itself, with a line that names the check.

    Examples:
        >>> check_policy("static@16")
        >>> check_policy(eepolicy.Static)
    """
    for each in instances_of(policy, parse_policy):
        run_checks(each, CHECKS)


def check_constructor(policy: ExitPolicy) -> None:
    """The policy is a frozen dataclass whose repr evaluates."""
    check_value_object(policy, "check_constructor")
    require(
        policy.on in MODALITIES,
        policy,
        "check_constructor",
        f"on is one of {', '.join(MODALITIES)}; it is {policy.on!r}",
    )


def check_spec_round_trip(policy: ExitPolicy) -> None:
    """`from_spec` reads what `spec` writes, on each modality."""
    if not policy.name:  # a policy without spec strings
        return
    fields: Any = getattr(policy, "__dataclass_fields__", {})
    for each in _on_each_modality(policy) if "on" in fields else [policy]:
        prefix, body = re.findall("^((?:text=|both=)?)(.*)$", each.spec)[0]
        require(
            body.startswith(policy.name),
            each,
            "check_spec_round_trip",
            f"its spec {each.spec!r} does not start with its name {policy.name!r}",
        )
        again: Any = type(policy).from_spec(body[len(policy.name) :])
        if "on" in fields:
            again = replace(again, on=prefix[:-1] or "speech")
        require(
            again == each,
            each,
            "check_spec_round_trip",
            f"from_spec reads {each.spec!r} as {again!r}",
        )


def check_some_depth_fits(policy: ExitPolicy) -> None:
    """`check` accepts a full depth of 1 to 64 and refuses others with `EepolicyError` only."""
    require(
        bool(full_depths(policy)),
        policy,
        "check_some_depth_fits",
        f"check() refuses every full depth of {FULL_DEPTHS[0]} to {FULL_DEPTHS[-1]}",
    )


def check_state(policy: ExitPolicy) -> None:
    """`begin` and `update` keep a state for each row, and `update` changes nothing in place."""
    check = "check_state"
    for step in steps(policy):
        rows = range(len(step.phase))
        begun = policy.begin(len(rows))
        alone = [policy.begin(1) for _ in rows]
        require(
            same_state(begun, _join(alone)),
            policy,
            check,
            f"begin({len(rows)}) is {begun}, but begin(1) of each row gives {_join(alone)}; rows "
            "must not depend on each other",
        )
        if begun is None:
            continue
        before = step.state and step.state.select(rows)
        updated, again = policy.update(step), policy.update(step)
        require(
            same_state(step.state, before),
            policy,
            check,
            f"update() changes the state in place, from {before} to {step.state}; return a new one",
        )
        require(
            same_state(updated, again),
            policy,
            check,
            f"update() returns {updated}, and a second time {again}",
        )
        each = _join([policy.update(step.select([row])) for row in rows])
        require(
            same_state(updated, each),
            policy,
            check,
            f"update() of {len(rows)} rows returns {updated}; each row by itself has {each}, but "
            "rows must not depend on each other",
        )


def check_depths(policy: ExitPolicy) -> None:
    """`depths` returns integers in 1..full depth, the same ones each time, row by row."""
    check = "check_depths"
    for step in steps(policy):
        depths = policy.depths(step)
        seen = f"depths() of {len(step.phase)} rows at full depth {step.full_depth} are {depths}"
        require(isinstance(depths, Tensor), policy, check, f"{seen}; return a tensor (rows,)")
        require(depths.shape == step.phase.shape, policy, check, f"{seen}; return (rows,)")
        whole = not depths.is_floating_point() and depths.dtype != torch.bool
        require(whole, policy, check, f"{seen}; return integers")
        least = least_depth(policy, step.full_depth)
        inside = bool(((depths >= least) & (depths <= step.full_depth)).all())
        require(inside, policy, check, f"{seen}; return {least} to the full depth")
        _require_possible(policy, check, step.full_depth, depths.tolist())
        again = policy.depths(step)
        require(torch.equal(again, depths), policy, check, f"{seen}, and a second time {again}")
        alone = torch.cat([policy.depths(step.select([row])) for row in range(len(depths))])
        require(
            torch.equal(alone, depths),
            policy,
            check,
            f"{seen}; each row by itself has {alone}, but rows must not depend on each other",
        )


def check_candidate_depths(policy: ExitPolicy) -> None:
    """Candidate depths rise within 1..full depth, and `min_depth` bounds every stop."""
    check = "check_candidate_depths"
    for step in steps(policy):
        candidates = policy.candidate_depths(step)
        seen = f"candidate_depths() at full depth {step.full_depth} are {candidates!r}"
        rising = list(candidates) == sorted(set(candidates))
        least = least_depth(policy, step.full_depth)
        inside = all(least <= depth <= step.full_depth for depth in candidates)
        require(
            rising and inside, policy, check, f"{seen}; return rising depths from {least} to full"
        )
        _require_possible(policy, check, step.full_depth, candidates)
        rows = range(len(step.phase))
        alone = {depth for row in rows for depth in policy.candidate_depths(step.select([row]))}
        require(
            alone <= set(candidates),
            policy,
            check,
            f"{seen}, but rows by themselves have {sorted(alone)}; return those of all rows",
        )
        minimum = policy.min_depth(step.full_depth)
        require(
            least <= minimum <= step.full_depth,
            policy,
            check,
            f"min_depth({step.full_depth}) is {minimum}; return {least} to the full depth",
        )
        lowest = min([*policy.depths(step).tolist(), *candidates])
        require(
            minimum <= lowest,
            policy,
            check,
            f"min_depth({step.full_depth}) is {minimum}, but the policy stops at depth {lowest}",
        )


def check_should_exit(policy: ExitPolicy) -> None:
    """`should_exit` returns (rows,) of bool, row by row, and False off the policy's modality."""
    check = "check_should_exit"
    for index, step in enumerate(steps(policy)):
        rows = range(len(step.phase))
        for readout in readouts(policy, step, index):
            exits = policy.should_exit(step, readout.depth, readout)
            seen = f"should_exit() of {len(rows)} rows at depth {readout.depth} is {exits}"
            require(
                isinstance(exits, Tensor)
                and exits.shape == step.phase.shape
                and exits.dtype == torch.bool,
                policy,
                check,
                f"{seen}; return a tensor (rows,) of bool",
            )
            for row in rows:
                own, depth = step.select([row]), readout.depth
                expected = depth in policy.candidate_depths(own) and bool(
                    policy.should_exit(own, depth, readout.select([row]))
                )
                require(
                    bool(exits[row]) == expected,
                    policy,
                    check,
                    f"{seen}; row {row} by itself has {expected}, but rows must not depend on "
                    "each other",
                )


def check_whole_decode(policy: ExitPolicy) -> None:
    """A reply has the policy's depths, the layer calls of its trace and the stock tokens."""
    fitting = full_depths(policy)
    # two layers more than it needs, where it fits, so that it can exit
    depth = fitting[min(2, len(fitting) - 1)]
    model = random_llama(depth)
    equip(model, policy)
    accept = AcceptExact() if policy.needs_verification else None
    check_decoding(policy, model, policy=policy, accept=accept)


CHECKS = (
    check_constructor,
    check_spec_round_trip,
    check_some_depth_fits,
    check_state,
    check_depths,
    check_candidate_depths,
    check_should_exit,
    check_whole_decode,
)


def _require_possible(
    policy: ExitPolicy, check: str, full_depth: int, depths: Sequence[int]
) -> None:
    """The policy names no depth below full that is not among its `possible_depths`."""
    possible = policy.possible_depths(full_depth)
    if possible is None:
        return
    others = sorted({depth for depth in depths if depth < full_depth} - {*possible})
    require(
        not others,
        policy,
        check,
        f"possible_depths({full_depth}) are {sorted(possible)}, but the policy stops at {others}",
    )


def _on_each_modality(policy: Any) -> list[ExitPolicy]:
    """The policy on speech, on text and on both."""
    return [replace(policy, on=on) for on in MODALITIES]


def same_state(one: PolicyState | None, other: PolicyState | None) -> bool:
    """Whether two states have the same type and values; nan equals nan."""
    if one is None or other is None or type(one) is not type(other):
        return one is other
    for field in fields(one):
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        if isinstance(ours, Tensor):
            if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
                return False
            if not torch.allclose(ours, theirs, rtol=0, atol=0, equal_nan=True):
                return False
        elif not same_state(ours, theirs):
            return False
    return True


def _join(states: list[PolicyState | None]) -> PolicyState | None:
    """The states of some rows, one after the other."""
    kept = [state for state in states if state is not None]
    return type(kept[0]).join(kept) if kept else None
