"""Gradients and figures of the head of one depth on stored states."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import Tensor, nn

from eepolicy.errors import EepolicyError
from eepolicy.fitting.config import FitConfig
from eepolicy.fitting.gradients import Teacher, add_gradients, frozen
from eepolicy.fitting.state_batch import StateBatch
from eepolicy.fitting.states import StateStore
from eepolicy.heads.fitted import FittedHead
from eepolicy.hooked import HookedModel


def add_batch_gradients(
    model: HookedModel, heads: FittedHead, config: FitConfig, batch: StateBatch
) -> None:
    """Add the gradient of the mean loss over a batch to the weights of the head of one depth."""
    [depth] = heads.depths
    with autocast(model, config):
        for part in batch.split(config.padded_positions):
            states = {depth: head_states(model, heads, part)}
            add_gradients(heads, states, Teacher.of(model, part.last), config, len(batch.last))


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


def head_states(model: HookedModel, heads: FittedHead, batch: StateBatch) -> Tensor:
    """The states that the head of one depth reads at the chosen positions: (chosen, width)."""
    [depth] = heads.depths
    if not heads.layers_at(depth):
        return batch.states
    states, chosen = batch.padded()
    return model.branch_states(states, depth, heads)[chosen]


@torch.no_grad()
def evaluate(
    model: HookedModel, heads: FittedHead, store: StateStore, config: FitConfig
) -> dict[str, float]:
    """Mean KL from the last layer in nats, and share of equal argmax tokens, on stored states.

    Raises:
        EepolicyError: the replies have no position to fit on.
    """
    [depth] = heads.depths
    kl, equal, count = 0.0, 0, 0
    for file in store.files:
        batch = store.read(file, model.device, torch.float32)
        for group in batch.split(config.padded_positions):
            with autocast(model, replace(config, precision="float32")):
                states = head_states(model, heads, group)
                for part, target in Teacher.of(model, group.last).chunks(config.chunk):
                    logits = heads.logits(states[part], depth).float()
                    logs = logits.log_softmax(-1)
                    kl += nn.functional.kl_div(logs, target, reduction="sum").item()
                    equal += int((logits.argmax(-1) == target.argmax(-1)).sum())
                    count += len(target)
    if not count:
        raise EepolicyError(f"the held-out replies have no {store.on} positions")
    return {"kl": kl / count, "agreement": equal / count}
