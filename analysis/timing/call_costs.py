"""Measured costs: a layer call, a head call, and the prefill of a batch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from eepolicy import HookedModel
from eepolicy.analysis.timing.contenders import synchronize
from eepolicy.compile.executor import CompiledExecutor
from eepolicy.decode.batch import Batch
from eepolicy.heads.fitted import FittedHead
from eepolicy.prompts import pad_left

STEPS = 40  # a call cost is the median of so many steps
PREFILLS = 5  # a prefill cost is the median of so many passes


@dataclass(frozen=True)
class CallCosts:
    """Seconds of the parts of decoding, for one batch size.

    Attributes:
        layer: a layer call on one position a row.
        head: a head call on one position a row.
        prefill: the pass over the prompts of a batch.
    """

    layer: float
    head: float
    prefill: float

    def token_seconds(
        self,
        layer_calls: float,
        readouts: float,
        prefill_layer_calls: float,
        tokens: float,
        depth: int,
    ) -> float:
        """Seconds a token of each row that calls of these costs would take.

        If the prompts run together with the first token, that token's layer calls are part of the
        prefill and are subtracted from it.

        Args:
            layer_calls: layer calls a token.
            readouts: head calls a token.
            prefill_layer_calls: layer calls on the prompts alone.
            tokens: length of a reply.
            depth: full depth.
        """
        prefill = self.prefill - (depth - prefill_layer_calls) * self.layer
        return prefill / tokens + layer_calls * self.layer + readouts * self.head


@torch.no_grad()
def call_costs(
    model: HookedModel,
    rows: int,
    executor: CompiledExecutor | None,
    tokens: int,
    steps: int = STEPS,
) -> tuple[float, float]:
    """Median seconds of a layer call and of a head call, on one position a row.

    Args:
        model: model that decodes.
        rows: number of rows in the batch.
        executor: runs compiled layers; the model's own layers if None.
        tokens: length of the context.
        steps: number of steps.
    """
    layer_seconds, head_seconds = [], []
    # fitted heads may leave depths out; the layers of branches are timed as layer calls
    fitted = model.heads.depths if isinstance(model.heads, FittedHead) else (model.depth - 1,)
    depth = max({*fitted} - {*model.heads.branch_depths}, default=model.depth)
    first, stop = model.layout.speech if model.layout.has_speech else model.layout.text
    ids = torch.randint(first, stop, (rows, tokens + steps)).to(model.device)
    batch = Batch(model, [0] * rows, ids.shape[1], executor=executor)
    batch.prefill(ids[:, :tokens])
    for column in range(tokens, ids.shape[1]):
        block = batch.begin_step(ids[:, column : column + 1], list(range(rows)))
        start = time.perf_counter()
        batch.run(block, model.depth)
        synchronize(model.device)
        layer_seconds.append((time.perf_counter() - start) / model.depth)
        start = time.perf_counter()
        batch.read(block.hidden[:, -1], depth).argmax(-1)
        synchronize(model.device)
        head_seconds.append(time.perf_counter() - start)
    return float(np.median(layer_seconds)), float(np.median(head_seconds))


@torch.no_grad()
def prefill_seconds(
    model: HookedModel,
    batches: Sequence[Sequence[torch.Tensor]],
    executor: CompiledExecutor | None,
    passes: int = PREFILLS,
) -> float:
    """Mean over batches of the median seconds of a pass over the prompts.

    Args:
        model: model that decodes.
        batches: prompts of each batch, (tokens,).
        executor: runs compiled layers; the model's own layers if None.
        passes: number of passes over each batch.
    """
    medians = []
    for prompts in batches:
        ids, mask = pad_left([p.to(model.device) for p in prompts], 0)
        padding = (mask == 0).sum(1).tolist()
        times = []
        for _ in range(passes):
            batch = Batch(model, padding, ids.shape[1], executor=executor)
            start = time.perf_counter()
            batch.prefill(ids)
            synchronize(model.device)
            times.append(time.perf_counter() - start)
        medians.append(float(np.median(times)))
    return float(np.mean(medians))
