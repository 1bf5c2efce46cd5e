"""What a machine can read and multiply, measured, and how fast decoding could be by that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.benchmark import Timer

from eepolicy import HookedModel, Trace
from eepolicy.model.families import SLIDING

SECONDS = 0.5  # of each measurement
SIDE = 1024  # of the square product
SIDE_ON_CUDA = 8192  # likewise: a smaller one does not fill such a device


@dataclass(frozen=True)
class Machine:
    """What was measured on the device of a model.

    Attributes:
        bytes_per_second: read from as much memory as the model's weights take; where they fit into
            a cache this is the cache's.
        flops: floating point operations a second, of square products in the model's precision.
    """

    bytes_per_second: float
    flops: float


def measure_machine(model: HookedModel) -> Machine:
    """Measure, with the threads that torch has, what the device of a model can do.

    Memory is read in pieces as big as a layer, as sums and as products with a vector; the faster of
    both counts.
    """
    like, threads = model.model, torch.get_num_threads()
    sizes = Sizes.of(model)
    rows = max(1, round(sizes.layer_bytes / 4 / SIDE))
    count = max(1, round((model.depth * sizes.layer_bytes + sizes.head_bytes) / (4 * rows * SIDE)))
    pieces = [torch.ones(rows, SIDE, device=like.device) for _ in range(count)]
    vector = torch.ones(SIDE, device=like.device)
    reading = min(
        Timer(statement, globals={"pieces": pieces, "vector": vector}, num_threads=threads)
        .blocked_autorange(min_run_time=SECONDS)
        .median
        for statement in ("for p in pieces: p.sum()", "for p in pieces: p @ vector")
    )
    side = SIDE_ON_CUDA if like.device.type == "cuda" else SIDE
    # of zeros or ones a device may multiply faster
    square = torch.randn(side, side, device=like.device).to(like.dtype)
    product = Timer("s @ s", globals={"s": square}, num_threads=threads)
    seconds = product.blocked_autorange(min_run_time=SECONDS).median
    return Machine(4 * rows * SIDE * count / reading, 2 * side**3 / seconds)


@dataclass(frozen=True)
class Sizes:
    """What a model's parts read and multiply.

    Attributes:
        layer_bytes: weights of a layer, on average.
        head_bytes: weights of the output embedding.
        column_bytes: keys and values of one position in one layer.
        layer_flops: operations of one position in a layer, attention aside.
        head_flops: of one position in the output embedding.
        sliding: share of the layers that attend to a window alone.
        window: columns of it.
    """

    layer_bytes: float
    head_bytes: float
    column_bytes: float
    layer_flops: float
    head_flops: float
    sliding: float = 0.0
    window: int = 0

    @classmethod
    def of(cls, model: HookedModel) -> Sizes:
        """The sizes of a model."""
        weights = [p for layer in model.parts.layers for p in layer.parameters()]
        numbers = sum(p.numel() for p in weights) / model.depth
        layer_bytes = sum(p.numel() * p.element_size() for p in weights) / model.depth
        config, item = model.model.config, torch.empty(0, dtype=model.model.dtype).element_size()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        per_head = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        embedding = config.vocab_size * config.hidden_size
        sliding = [kind == SLIDING for kind in model.parts.attention]
        return cls(
            layer_bytes,
            embedding * item,
            2 * heads * per_head * item,
            2 * numbers,
            2 * embedding,
            sum(sliding) / len(sliding),
            model.parts.window or 0,
        )

    def reach(self, columns: NDArray[np.int64]) -> NDArray[np.float64]:
        """Columns that a layer attends to, on average, with so many there: any shape, kept."""
        seen = np.minimum(columns, self.window)
        return (1 - self.sliding) * columns + self.sliding * seen


def least_seconds(
    traces: Sequence[Trace], prompts: Sequence[int], sizes: Sizes, machine: Machine
) -> NDArray[np.float64]:
    """The least time in which a batch could have been decoded, in seconds: (steps,).

    A step reads the weights of a layer once, however many rows are in it, and the keys and values
    of each row in each layer; or it multiplies, where that takes longer.  Both are lower bounds:
    what rows at different depths read twice, hidden states and fitted heads are left out.  The
    prompts' pass is of the first step, whether they go along with it or are run before.

    Args:
        traces: of the rows.
        prompts: tokens of each prompt.
        sizes: of the model.
        machine: that decodes.
    """
    calls = _stacked([t.layer_calls for t in traces])
    positions = _stacked([t.layer_positions for t in traces])
    readouts = _stacked([t.readouts for t in traces])
    reached = [sizes.reach(n + np.arange(len(t))) for t, n in zip(traces, prompts, strict=True)]
    columns = calls * _stacked(reached)
    read = (
        calls.max(0) * sizes.layer_bytes
        + readouts.max(0) * sizes.head_bytes
        + columns.sum(0) * sizes.column_bytes
    )
    multiplied = positions.sum(0) * sizes.layer_flops + readouts.sum(0) * sizes.head_flops
    depth = traces[0].full_depth
    prompt = depth * sum(n - 1 for n in prompts) * sizes.layer_flops
    alone = 0.0
    if traces[0].prefill_layer_calls:
        alone = max(depth * sizes.layer_bytes / machine.bytes_per_second, prompt / machine.flops)
    else:  # it went along with the first tokens
        multiplied[0] += prompt
    least: NDArray[np.float64] = np.maximum(
        read / machine.bytes_per_second, multiplied / machine.flops
    )
    least[0] += alone
    return least


def _stacked(rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Rows of different lengths, with zeros behind the shorter: (rows, steps)."""
    steps = max(map(len, rows))
    return np.stack([np.pad(row, (0, steps - len(row))) for row in rows])
