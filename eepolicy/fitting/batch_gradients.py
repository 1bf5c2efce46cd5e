"""Gradients and figures of the head of one depth on stored states."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from eepolicy.errors import EepolicyError
from eepolicy.fitting.config import FitConfig
from eepolicy.fitting.gradients import HeadStates, Teacher, add_gradients, frozen
from eepolicy.fitting.state_batch import StateBatch
from eepolicy.fitting.states import StateStore
from eepolicy.fitting.unroll import DECAY, chains, unrolled_states
from eepolicy.heads.fitted import FittedHead
from eepolicy.hooked import HookedModel


def add_batch_gradients(
    model: HookedModel, heads: FittedHead, config: FitConfig, batch: StateBatch
) -> None:
    """Add the gradient of the mean loss over a batch to the weights of the head of one depth."""
    with autocast(model, config):
        for part in batch.split(config.padded_positions):
            read = head_states(model, heads, config, part)
            add_gradients(heads, read, Teacher.of(model, part.last), config, len(batch.last))


def autocast(model: HookedModel, config: FitConfig) -> torch.autocast:
    """Products in bfloat16, if the options or the weights of the model say so."""
    in_float32 = config.precision == "float32" and model.model.dtype == torch.float32
    return torch.autocast(model.device.type, torch.bfloat16, enabled=not in_float32)


def seconds_of_step(
    model: HookedModel, heads: FittedHead, config: FitConfig, batch: StateBatch
) -> float:
    """Measure the gradients of a batch, the second time that they are computed.

    The gradients of the heads change.
    """
    heads.requires_grad_()
    seconds = 0.0
    with frozen(model.model):
        for _ in range(2):
            began = time.perf_counter()
            add_batch_gradients(model, heads, config, batch)
            seconds = time.perf_counter() - began
    return seconds


def head_states(
    model: HookedModel, heads: FittedHead, config: FitConfig, batch: StateBatch
) -> list[HeadStates]:
    """What the head of one depth reads at the chosen positions; a drafter, at each step."""
    [depth] = map(int, heads.heads)
    if depth == 0:
        steps = unrolled_states(model, heads, batch, config.unroll)
        return [HeadStates(0, states, DECAY**step) for step, states in enumerate(steps)]
    if not heads.layers_at(depth):
        return [HeadStates(depth, batch.states)]
    states, chosen = batch.padded()
    return [HeadStates(depth, model.branch_states(states, depth, heads)[chosen])]


@torch.no_grad()
def evaluate(
    model: HookedModel, heads: FittedHead, store: StateStore, config: FitConfig
) -> dict[str, float]:
    """Mean KL from the last layer in nats, and share of equal argmax tokens, on stored states.

    A drafter has these figures of its first step, and `accepted`: the mean number of accepted
    drafts in a chain of `config.unroll`, see `chains`.  It lacks where no chain fits.

    Raises:
        EepolicyError: the replies have no position to fit on.
    """
    kl, equal, count, accepted, starts = 0.0, 0, 0, 0, 0
    for file in store.files:
        batch = store.read(file, model.device, torch.float32)
        for group in batch.split(config.padded_positions):
            with autocast(model, replace(config, precision="float32")):
                read = head_states(model, heads, config, group)
                total, right = _compare(heads, read, Teacher.of(model, group.last), config.chunk)
            kl, equal, count = kl + total, equal + int(right[0].sum()), count + len(group.last)
            if store.depth == 0:
                drafts, number = chains(group, right)
                accepted, starts = accepted + drafts, starts + number
    if not count:
        raise EepolicyError(f"the held-out replies have no {store.on} positions")
    figures = {"kl": kl / count, "agreement": equal / count}
    return figures | ({"accepted": accepted / starts} if starts else {})


def _compare(
    heads: FittedHead, read: Sequence[HeadStates], teacher: Teacher, chunk: int
) -> tuple[float, Tensor]:
    """Sum of the KL of the first step, and equal argmax tokens (steps, positions) of bool."""
    kl, device = 0.0, teacher.states.device
    right = torch.zeros(len(read), len(teacher.states), dtype=torch.bool, device=device)
    for part, target in teacher.chunks(chunk):
        for step, one in enumerate(read):
            logits = heads.logits(one.states[part], one.depth).float()
            right[step, part] = logits.argmax(-1) == target.argmax(-1)
            if step == 0:
                logs = logits.log_softmax(-1)
                kl += nn.functional.kl_div(logs, target, reduction="sum").item()
    return kl, right
