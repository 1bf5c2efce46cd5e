"""Random steps, readouts and models for the conformance checks of policies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from eepolicy.decode.readout import LazyReadout, ReadoutSource
from eepolicy.decode.rebatch import LayerCosts
from eepolicy.errors import EepolicyError
from eepolicy.heads.drafter import DrafterHead
from eepolicy.heads.predictor import ExitPredictor
from eepolicy.hooked import HookedModel
from eepolicy.policies import ExitPolicy, History, Step

#: full depths that are tried; a policy refuses those it does not fit
FULL_DEPTHS = range(1, 65)
WIDTH, VOCAB, ROWS = 8, 11, 7
#: steps before each that is checked, which give a stateful policy its state
EARLIER_STEPS = 3
COSTS = LayerCosts((1, 2, 8), (1e-3, 1.2e-3, 2e-3), readout_seconds=1e-3)


def full_depths(policy: ExitPolicy) -> list[int]:
    """The full depths that the policy accepts."""
    fitting = []
    for full_depth in FULL_DEPTHS:
        try:
            policy.check(full_depth)
        except EepolicyError:
            continue
        fitting.append(full_depth)
    return fitting


def steps(policy: ExitPolicy) -> Iterator[Step]:
    """Random steps of one and several rows at the smallest, the largest and middle full depths."""
    generator = torch.Generator().manual_seed(0)
    fitting = full_depths(policy)
    chosen = sorted({fitting[0], fitting[min(3, len(fitting) - 1)], fitting[-1]})
    for full_depth in chosen:
        for rows in (1, ROWS, ROWS):
            state = policy.begin(rows)
            for _ in range(EARLIER_STEPS if state is not None else 0):
                step = _random_step(policy, rows, full_depth, generator)
                state = policy.update(replace(step, state=state))
            yield replace(_random_step(policy, rows, full_depth, generator), state=state)


def _random_step(
    policy: ExitPolicy, rows: int, full_depth: int, generator: torch.Generator
) -> Step:
    """A random step with what the policy needs, without a state."""
    columns = torch.randint(0, 50, (4, rows), generator=generator)
    modality = torch.randint(0, 2, (rows,), generator=generator)
    chunk, phase, position, ordinal = columns
    step = Step(modality, chunk, phase, position, ordinal, full_depth, num_drafts=phase % 9)
    if policy.needs_history:
        step = replace(step, history=_random_history(rows, full_depth, generator))
    return replace(step, costs=COSTS) if policy.needs_costs else step


def _random_history(rows: int, full_depth: int, generator: torch.Generator) -> History:
    """Tokens, depths and verifications at random."""
    num_drafts = torch.randint(0, 9, (rows,), generator=generator)
    share = torch.rand(rows, generator=generator)
    return History(
        torch.randint(0, VOCAB, (rows,), generator=generator),
        torch.randint(1, full_depth + 1, (rows,), generator=generator),
        num_drafts,
        (share * (num_drafts + 1)).long().clamp(max=num_drafts),
        torch.rand(rows, generator=generator) < 0.5,
        [*torch.randn(rows, VOCAB, generator=generator)],
    )


def least_depth(policy: ExitPolicy, full_depth: int) -> int:
    """The least depth that the policy may name: 0 if it says that it uses a drafter."""
    return 0 if 0 in (policy.possible_depths(full_depth) or ()) else 1


def equip(model: HookedModel, policy: ExitPolicy) -> None:
    """Give a model what a policy may ask for: predictor, drafter, and fixed layer costs.

    Args:
        model: model without them.
        policy: exit policy.
    """
    if least_depth(policy, model.depth) == 0:
        width = model.width
        heads = DrafterHead.untrained(model.lens, (0,), width=width)
        model.heads = heads.to(model.model.dtype)
    predictor = ExitPredictor(range(1, model.depth), model.width)
    generator = torch.Generator().manual_seed(0)
    for parameter in predictor.parameters():  # probabilities above and below a half
        torch.nn.init.normal_(parameter, generator=generator)
    model.predictor = predictor.requires_grad_(False)
    model.measured_costs[False] = COSTS


def readouts(policy: ExitPolicy, step: Step, seed: int) -> Iterator[LazyReadout]:
    """Random readouts at the candidate depths, one after the other."""
    generator = torch.Generator().manual_seed(seed)
    head = torch.randn(WIDTH, VOCAB, generator=generator)

    def read(hidden: Tensor, depth: int, rows: Sequence[int]) -> Tensor:
        return hidden @ head

    def predict(hidden: Tensor, depth: int) -> Tensor:
        return hidden.sum(-1).sigmoid()

    def hidden() -> Tensor:
        return torch.randn(len(step.phase), WIDTH, generator=generator)

    source = ReadoutSource(read, predict=predict)
    previous: LazyReadout | None = None
    full = LazyReadout(step.full_depth, hidden(), source) if policy.needs_full_pass else None
    for depth in policy.candidate_depths(step):
        previous = LazyReadout(depth, hidden(), source, previous, full)
        yield previous
