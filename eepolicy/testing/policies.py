"""Conformance checks of exit policies."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from eepolicy.decode.readout import LazyReadout, ReadoutSource
from eepolicy.errors import EepolicyError
from eepolicy.policies import ExitPolicy, Step, parse_policy
from eepolicy.policies.base import MODALITIES
from eepolicy.testing.decoding import check_decoding
from eepolicy.testing.models import random_llama
from eepolicy.testing.report import (
    check_value_object,
    instances_of,
    require,
    run_checks,
)

#: full depths that are tried; a policy refuses those it does not fit
FULL_DEPTHS = range(1, 65)
WIDTH, VOCAB, ROWS = 8, 11, 7


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
        >>> check_policy(eepolicy.SparK)
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
        bool(_full_depths(policy)),
        policy,
        "check_some_depth_fits",
        f"check() refuses every full depth of {FULL_DEPTHS[0]} to {FULL_DEPTHS[-1]}",
    )


def check_depths(policy: ExitPolicy) -> None:
    """`depths` returns integers in 1..full depth, the same ones each time, row by row."""
    check = "check_depths"
    for step in _steps(policy):
        depths = policy.depths(step)
        seen = f"depths() of {len(step.phase)} rows at full depth {step.full_depth} are {depths}"
        require(isinstance(depths, Tensor), policy, check, f"{seen}; return a tensor (rows,)")
        require(depths.shape == step.phase.shape, policy, check, f"{seen}; return (rows,)")
        whole = not depths.is_floating_point() and depths.dtype != torch.bool
        require(whole, policy, check, f"{seen}; return integers")
        inside = bool(((depths >= 1) & (depths <= step.full_depth)).all())
        require(inside, policy, check, f"{seen}; return 1 to the full depth")
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
    for step in _steps(policy):
        candidates = policy.candidate_depths(step)
        seen = f"candidate_depths() at full depth {step.full_depth} are {candidates!r}"
        rising = list(candidates) == sorted(set(candidates))
        inside = all(1 <= depth <= step.full_depth for depth in candidates)
        require(rising and inside, policy, check, f"{seen}; return rising depths from 1 to full")
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
            1 <= minimum <= step.full_depth,
            policy,
            check,
            f"min_depth({step.full_depth}) is {minimum}; return 1 to the full depth",
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
    for index, step in enumerate(_steps(policy)):
        rows = range(len(step.phase))
        for readout in _readouts(policy, step, index):
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
    fitting = _full_depths(policy)
    # two layers more than it needs, where it fits, so that it can exit
    depth = fitting[min(2, len(fitting) - 1)]
    check_decoding(policy, random_llama(depth), policy=policy)


CHECKS = (
    check_constructor,
    check_spec_round_trip,
    check_some_depth_fits,
    check_depths,
    check_candidate_depths,
    check_should_exit,
    check_whole_decode,
)


def _on_each_modality(policy: Any) -> list[ExitPolicy]:
    """The policy on speech, on text and on both."""
    return [replace(policy, on=on) for on in MODALITIES]


def _full_depths(policy: ExitPolicy) -> list[int]:
    """The full depths that the policy accepts."""
    fitting = []
    for full_depth in FULL_DEPTHS:
        try:
            policy.check(full_depth)
        except EepolicyError:
            continue
        fitting.append(full_depth)
    return fitting


def _steps(policy: ExitPolicy) -> Iterator[Step]:
    """Random steps of one and several rows at the smallest, the largest and middle full depths."""
    generator = torch.Generator().manual_seed(0)
    fitting = _full_depths(policy)
    chosen = sorted({fitting[0], fitting[min(3, len(fitting) - 1)], fitting[-1]})
    for full_depth in chosen:
        for rows in (1, ROWS, ROWS):
            columns = torch.randint(0, 50, (4, rows), generator=generator)
            modality = torch.randint(0, 2, (rows,), generator=generator)
            chunk, phase, position, ordinal = columns
            yield Step(modality, chunk, phase, position, ordinal, full_depth)


def _readouts(policy: ExitPolicy, step: Step, seed: int) -> Iterator[LazyReadout]:
    """Random readouts at the candidate depths, one after the other."""
    generator = torch.Generator().manual_seed(seed)
    head = torch.randn(WIDTH, VOCAB, generator=generator)

    def read(hidden: Tensor, depth: int, rows: Sequence[int]) -> Tensor:
        return hidden @ head

    def hidden() -> Tensor:
        return torch.randn(len(step.phase), WIDTH, generator=generator)

    previous: LazyReadout | None = None
    full = (
        LazyReadout(step.full_depth, hidden(), ReadoutSource(read))
        if policy.needs_full_pass
        else None
    )
    for depth in policy.candidate_depths(step):
        previous = LazyReadout(depth, hidden(), ReadoutSource(read), previous, full)
        yield previous
