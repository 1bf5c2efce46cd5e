"""Measures what a layer call costs on this machine."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor

from eepolicy.decode.batch import Batch
from eepolicy.decode.block import Block
from eepolicy.decode.rebatch import LayerCosts
from eepolicy.model.backbone import Backbone
from eepolicy.model.executor import LayerExecutor

#: measured numbers of positions.  In compiled layers without the native library, five cost as much
#: as eight, and nine much more
NUM_POSITIONS = (1, 2, 3, 4, 5, 8, 9, 16, 32, 64)
#: columns in the cache before the measured ones
CONTEXT_COLUMNS = 64
#: layers that run in turn, so that weights come from the same level of memory as in decoding
MEASURED_LAYERS = 4
ROUNDS = 3


@torch.no_grad()
def measure_layers(backbone: Backbone, executor: LayerExecutor | None = None) -> LayerCosts:
    """Time layer calls with `CONTEXT_COLUMNS` columns in the cache, and a readout.

    Each time is the median of a few rounds.

    Args:
        backbone: the model.
        executor: runs the layers; default: the backbone.
    """
    model, layers = backbone.model, min(MEASURED_LAYERS, backbone.depth)
    # not the global one: a measurement changes no tokens that are sampled later
    generator = torch.Generator().manual_seed(0)

    def states(*shape: int) -> Tensor:
        """Random hidden states: (*shape, width)."""
        like = torch.randn(*shape, backbone.width, generator=generator)
        return like.to(backbone.device, model.dtype)

    def time_block(batch: Batch, rows: list[int], columns: int) -> float:
        """Seconds of a layer call on new columns of some rows."""
        batch.columns += columns
        block = Block(rows, states(len(rows), columns), [columns] * len(rows))
        start = time.perf_counter()
        batch.run(block, layers)
        block.hidden.sum().item()  # waits for an asynchronous device
        return (time.perf_counter() - start) / layers

    def seconds(rows: list[int], columns: int = 1) -> float:
        """Median seconds of a layer call on new columns of some rows, after the context."""
        all_rows = list(range(rows[-1] + 1))
        capacity = CONTEXT_COLUMNS + (ROUNDS + 1) * columns
        batch = Batch(backbone, [0] * len(all_rows), capacity, executor=executor)
        time_block(batch, all_rows, CONTEXT_COLUMNS)
        times = [time_block(batch, rows, columns) for _ in range(ROUNDS + 1)]
        return float(np.median(times[1:]))

    def readout_seconds() -> float:
        """Median seconds of a full-depth readout of one position."""
        batch, times = Batch(backbone, [0], 1, executor=executor), []
        hidden = states(1)
        for _ in range(ROUNDS + 1):
            start = time.perf_counter()
            batch.read(hidden, backbone.depth).sum().item()
            times.append(time.perf_counter() - start)
        return float(np.median(times[1:]))

    of_one_row = tuple(seconds([0], columns) for columns in NUM_POSITIONS)
    gather_seconds = max(0.0, seconds([0, 2]) - seconds([0, 1]))
    return LayerCosts(NUM_POSITIONS, of_one_row, gather_seconds, readout_seconds())
