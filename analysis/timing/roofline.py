"""Roofline: measured bandwidth and FLOP/s of a device, and the lower bound of decoding time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from eepolicy import HookedModel, Trace
from eepolicy.model.families import SLIDING
from eepolicy.model.kv_cache import numbers_per_token

SECONDS = 0.5  # duration of each measurement
SIDE = 1024  # rows of the square matrices that are multiplied
SIDE_ON_CUDA = 8192  # likewise; smaller ones do not fill such a device


@dataclass(frozen=True)
class Machine:
    """Measured limits of a device.

    Attributes:
        bytes_per_second: read bandwidth over as much memory as the model's weights take; this is
            the bandwidth of a cache if they fit into one.
        flops: floating point operations per second of square products in the model's dtype.
    """

    bytes_per_second: float
    flops: float


def measure_machine(model: HookedModel) -> Machine:
    """Measure the device of a model with torch's current number of threads."""
    like = model.model
    side = SIDE_ON_CUDA if like.device.type == "cuda" else SIDE
    # random numbers: some devices multiply zeros or ones faster
    square = torch.randn(side, side, device=like.device).to(like.dtype)
    product = Timer("s @ s", globals={"s": square}, num_threads=torch.get_num_threads())
    seconds = product.blocked_autorange(min_run_time=SECONDS).median
    return Machine(measure_bandwidth(model), 2 * side**3 / seconds)


def measure_bandwidth(model: HookedModel) -> float:
    """Bytes a second that the device of a model reads with torch's current number of threads.

    As much memory is read as the model's weights take, in pieces of the size of a layer, as sums
    and as products with a vector; the faster of both counts.
    """
    sizes, device = Sizes.of(model), model.device
    rows = max(1, round(sizes.layer_bytes / 4 / SIDE))
    count = max(1, round((model.depth * sizes.layer_bytes + sizes.head_bytes) / (4 * rows * SIDE)))
    pieces = [torch.ones(rows, SIDE, device=device) for _ in range(count)]
    reading = min(
        Timer(
            statement,
            globals={"pieces": pieces, "vector": torch.ones(SIDE, device=device)},
            num_threads=torch.get_num_threads(),
        )
        .blocked_autorange(min_run_time=SECONDS)
        .median
        for statement in ("for p in pieces: p.sum()", "for p in pieces: p @ vector")
    )
    return 4 * rows * SIDE * count / reading


@dataclass(frozen=True)
class Sizes:
    """Bytes and operations of the parts of a model.

    Attributes:
        layer_bytes: weights of a layer, on average.
        head_bytes: weights of the output embedding.
        column_bytes: keys and values of one position in one layer.
        layer_flops: operations on one position in a layer, without attention.
        head_flops: operations on one position in the output embedding.
        sliding: share of the layers with sliding-window attention.
        window: length of the sliding window.
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
        weights = [t for layer in model.parts.layers for t in _tensors(layer)]
        numbers = sum(t.numel() for t in weights) / model.depth
        layer_bytes = sum(t.nbytes for t in weights) / model.depth
        config, item = model.model.config, torch.empty(0, dtype=model.model.dtype).element_size()
        embedding = config.vocab_size * config.hidden_size
        head = model.parts.head
        tensors = _tensors(head) if isinstance(head, nn.Module) else []
        sliding = [kind == SLIDING for kind in model.parts.attention]
        return cls(
            layer_bytes,
            sum(t.nbytes for t in tensors) if tensors else embedding * item,
            numbers_per_token(config) * item,
            2 * numbers,
            2 * embedding,
            sum(sliding) / len(sliding),
            model.parts.window or 0,
        )

    def attended(self, columns: NDArray[np.int64]) -> NDArray[np.float64]:
        """Mean number of columns that a layer attends to.

        Args:
            columns: columns in the cache, any shape.

        Returns:
            The same shape.
        """
        windowed = np.minimum(columns, self.window)
        return (1 - self.sliding) * columns + self.sliding * windowed


@dataclass(frozen=True)
class Roofline:
    """Lower bound of the time in which a device could decode.

    Attributes:
        sizes: bytes and operations of the model.
        machine: limits of the device.
    """

    sizes: Sizes
    machine: Machine

    @classmethod
    def measure(cls, model: HookedModel) -> Roofline:
        """Measure the device of a model."""
        return cls(Sizes.of(model), measure_machine(model))

    def step_seconds(self, traces: Sequence[Trace], prompts: Sequence[int]) -> NDArray[np.float64]:
        """Lower bound of the seconds of each step of a batch.

        A step reads the weights of a layer once for all rows, and the keys and values of each row
        in each layer; or it computes the products, if that takes longer.  Weights that rows at
        different depths read twice, hidden states and fitted heads are left out, so this is a lower
        bound.  The prefill counts for the first step.

        Args:
            traces: traces of the rows.
            prompts: tokens of each prompt.

        Returns:
            (steps,).
        """
        sizes, machine = self.sizes, self.machine
        calls = _stacked([t.layer_calls for t in traces])  # (rows, steps), as all of these
        positions = _stacked([t.layer_positions for t in traces])
        readouts = _stacked([t.readouts for t in traces])
        attended = _stacked(
            [sizes.attended(n + np.arange(len(t))) for t, n in zip(traces, prompts, strict=True)]
        )
        read = (
            calls.max(0) * sizes.layer_bytes
            + readouts.max(0) * sizes.head_bytes
            + (calls * attended).sum(0) * sizes.column_bytes
        )  # bytes, (steps,)
        multiplied = positions.sum(0) * sizes.layer_flops + readouts.sum(0) * sizes.head_flops
        depth = traces[0].full_depth
        prefill = depth * sum(n - 1 for n in prompts) * sizes.layer_flops
        prefill_seconds = 0.0
        if traces[0].prefill_layer_calls:
            reading = depth * sizes.layer_bytes / machine.bytes_per_second
            prefill_seconds = max(reading, prefill / machine.flops)
        else:  # the prompts ran together with the first tokens
            multiplied[0] += prefill
        seconds: NDArray[np.float64] = np.maximum(
            read / machine.bytes_per_second, multiplied / machine.flops
        )
        seconds[0] += prefill_seconds
        return seconds


def _tensors(module: nn.Module) -> list[Tensor]:
    """Weights, which are buffers where they are in int8."""
    return [*module.parameters(), *module.buffers()]


def _stacked(rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Rows of different lengths, padded with zeros at the right: (rows, steps)."""
    steps = max(map(len, rows))
    return np.stack([np.pad(row, (0, steps - len(row))) for row in rows])
