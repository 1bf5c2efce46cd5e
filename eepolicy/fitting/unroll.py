"""The states of a drafter over whole replies, for several steps of drafting."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from eepolicy.errors import EepolicyError
from eepolicy.fitting.state_batch import StateBatch
from eepolicy.heads.drafter import DrafterHead
from eepolicy.heads.fitted import FittedHead
from eepolicy.hooked import HookedModel

#: weight of the loss of a step, relative to that of the step before
DECAY = 0.8


def unrolled_states(
    model: HookedModel, heads: FittedHead, batch: StateBatch, steps: int
) -> list[Tensor]:
    """States of the drafter at the chosen positions, for each step of drafting.

    Step 0 reads the model's last state at the position before.  A later step reads the drafter's
    own state of the step before, as decoding does after so many drafts.  This follows the training
    of EAGLE-3 (arXiv 2503.01840), with one simplification: a step attends to the keys of the same
    step at all earlier positions.  Decoding attends to keys of step 0 before the chain.

    Args:
        model: the model.
        heads: heads with a drafter.
        batch: states after the last layer and ids, of all positions.
        steps: number of steps.

    Returns:
        (chosen, width) for each step.

    Raises:
        EepolicyError: the head at depth 0 is not a drafter, or the batch has no ids.
    """
    drafter = heads.at(0)
    if not isinstance(drafter, DrafterHead) or batch.ids is None:
        raise EepolicyError("drafting takes a drafter at depth 0 and the ids of the replies")
    states, chosen = batch.padded()
    with torch.no_grad():
        ids = pad_sequence(batch.ids.split(batch.lengths.tolist()), batch_first=True)
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        embedding = model.embed(ids, positions).to(states.dtype)
    result = []
    for _ in range(steps):
        previous = nn.functional.pad(states[:, :-1], (0, 0, 1, 0))
        # autocast gives the inputs in bfloat16; the layers add to them in float32
        inputs = drafter.inputs(previous, embedding).to(embedding.dtype)
        states = model.branch_states(inputs, 0, heads)
        result.append(states[chosen])
    return result


def chains(batch: StateBatch, right: Tensor) -> tuple[int, int]:
    """Count the drafts that chains accept.

    A chain starts at each position from which on all its positions are chosen.  It accepts drafts
    up to the first one that differs from the token of the last layer.

    Args:
        batch: the replies.
        right: (steps, chosen) of bool, whether the token of a step is that of the last layer.

    Returns:
        Number of accepted drafts, and number of chains.

    Examples:
        >>> batch = StateBatch(
        ...     states=torch.zeros(4, 1),
        ...     last=torch.zeros(3, 1),
        ...     chosen=torch.tensor([False, True, True, True]),
        ...     lengths=torch.tensor([4]),
        ... )
        >>> # two chains: right then wrong, right then right
        >>> chains(batch, torch.tensor([[True, True, True], [False, False, True]]))
        (3, 2)
    """
    steps = len(right)
    _, chosen = batch.padded()  # (replies, longest)
    starts = chosen.shape[1] - steps + 1
    if starts < 1:
        return 0, 0
    inside = torch.ones_like(chosen[:, :starts])
    for step in range(steps):
        inside = inside & chosen[:, step : step + starts]
    accepted, alive = 0, inside
    for step in range(steps):
        # step s of a chain predicts at its start + s
        correct = torch.zeros_like(chosen)
        correct[chosen] = right[step]
        alive = alive & correct[:, step : step + starts]
        accepted += int(alive.sum())
    return accepted, int(inside.sum())
