"""Compiled layers on a CUDA device: one graph launch runs a span of layers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eepolicy.compile.executor import CompiledExecutor
from eepolicy.compile.gemv import MAX_CAPTURED_ROWS
from eepolicy.model.backbone import Backbone
from eepolicy.model.families import Rotation
from eepolicy.model.kv_buffers import KVBufferPool
from eepolicy.model.kv_cache import KVCache

#: graphs attend to a multiple of so many columns, the last ones masked, so that one graph serves
#: many steps
KV_BUCKET = 256
#: maximum number of graphs for a KV buffer; the oldest is dropped
MAX_GRAPHS = 256


class CudaGraphExecutor(CompiledExecutor):
    """Runs spans of layers as CUDA graphs.

    A layer has some ten kernels, which the device finishes faster than the host launches them.  The
    second time that a span of layers runs on the same few new columns, its kernels are captured in
    a graph; from then on one launch replays them.  A graph belongs to one KV buffer, which the next
    batch uses again.  Prompts, and rows that are not consecutive, run layer by layer.

    Args:
        model: model whose layers run.
    """

    def __init__(self, model: Backbone) -> None:
        super().__init__(model)
        self._capture_state: tuple[torch.cuda.Stream, Any] | None = None
        self._unavailable = False  # capturing has failed

    def _use_layers(self, layers: Sequence[nn.Module]) -> None:
        super()._use_layers(layers)
        self._pool = KVBufferPool(len(layers))  # graphs of earlier buffers read earlier weights

    def open_cache(self, rows: int, capacity: int) -> KVCache:
        """A KV cache whose buffer is used again after it."""
        return KVCache(self.num_layers, rows, capacity, self._pool)

    def run_layers(
        self,
        first: int,
        stop: int,
        hidden: Tensor,
        rotations: dict[str, Rotation],
        masks: dict[str, Tensor | None],
        cache: KVCache,
    ) -> Tensor:
        """Run a span of layers; see `LayerExecutor.run_layers`."""
        rows, start, _, _ = cache.slots
        prompt, wide = start == 0, hidden[..., 0].numel() > MAX_CAPTURED_ROWS
        off = self._broken or self._unavailable or None in self.table.templates[first:stop]
        if off or prompt or wide or not isinstance(rows, slice):
            return super().run_layers(first, stop, hidden, rotations, masks, cache)
        inputs = self._graph_inputs(first, stop, hidden, rotations, masks, cache)
        replays, key = cache.buffer.replays, (rows.start, rows.stop, inputs.guard)
        replay: _GraphReplay | None = replays.get(key)
        if replay is None and key in replays:  # the span has run once without a graph
            replay = replays[key] = self._capture(inputs, cache)
        if replay is not None:
            return replay(inputs.tensors)
        out = self._run_span(inputs, inputs.tensors, cache)
        if out is None:
            return super().run_layers(first, stop, hidden, rotations, masks, cache)
        if len(replays) == MAX_GRAPHS:
            del replays[next(iter(replays))]
        replays[key] = None
        return out

    def _graph_inputs(
        self,
        first: int,
        stop: int,
        hidden: Tensor,
        rotations: dict[str, Rotation],
        masks: dict[str, Tensor | None],
        cache: KVCache,
    ) -> GraphInputs:
        """The inputs of a span as tensors, padded to few shapes."""
        _, _, end, fresh = cache.slots
        bucket = min(-(-end // KV_BUCKET) * KV_BUCKET, cache.capacity)
        kinds = sorted({*self.model.attention[first:stop]})
        tensors, masked = [hidden, cache.column_indices(hidden.device)], []
        if fresh is not None:
            tensors.append(fresh)
        for kind in kinds:
            tensors += rotations.get(kind, ())
        for kind in kinds:
            mask = masks[kind]
            if mask is not None:
                hide = 0.0 if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
                tensors.append(F.pad(mask, (0, bucket - end), value=hide))
                masked.append(kind)
        rotated = {kind: len(rotations[kind]) for kind in kinds if kind in rotations}
        return GraphInputs(first, stop, bucket, fresh is not None, rotated, masked, tensors)

    def _run_span(
        self, inputs: GraphInputs, tensors: Sequence[Tensor], cache: KVCache
    ) -> Tensor | None:
        """Run a span layer by layer: (rows, columns, width); None where there is no kernel."""
        hidden, *rest = tensors
        slots, rest = rest[: 1 + inputs.ragged], rest[1 + inputs.ragged :]
        rotations: dict[str, Rotation] = {}
        for kind, count in inputs.rotated.items():
            rotations[kind], rest = tuple(rest[:count]), rest[count:]
        masks = dict(zip(inputs.masked, rest, strict=True))
        causal = self._causal_mask(slots[0], inputs.bucket, hidden.dtype)
        for index in range(inputs.first, inputs.stop):
            view = self._view(index, hidden, cache, inputs.bucket)
            kind = self.model.attention[index]
            if view is None:
                return None
            rotation, mask = rotations.get(kind), masks.get(kind, causal)
            out = self._layer_output(index, hidden, rotation, mask, (*view[:2], *slots))
            if out is None:
                return None
            hidden = out
        return hidden

    def _causal_mask(self, indices: Tensor, bucket: int, dtype: torch.dtype) -> Tensor:
        """The mask of columns that see all columns up to their own: (1, 1, columns, bucket)."""
        seen = (torch.arange(bucket, device=indices.device) <= indices[:, None])[None, None]
        if self.model.text_config._attn_implementation != "eager":
            return seen
        zeros = torch.zeros(seen.shape, dtype=dtype, device=indices.device)
        return zeros.masked_fill(~seen, torch.finfo(dtype).min)

    def _capture(self, inputs: GraphInputs, cache: KVCache) -> _GraphReplay | None:
        """Capture a span as a graph; where that fails, warn, make no more graphs, return None."""
        device = self.model.device
        with torch.inference_mode(False):  # the graph outlives the inference mode of the caller
            static = [t.clone() for t in inputs.tensors]
        try:
            if self._capture_state is None:
                self._capture_state = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
            (stream, pool), graph = self._capture_state, torch.cuda.CUDAGraph()
            current = torch.cuda.current_stream(device)
            stream.wait_stream(current)
            with torch.cuda.stream(stream), _capturing(graph, pool):
                out = self._run_span(inputs, static, cache)
            current.wait_stream(stream)
            if out is None:
                raise RuntimeError("a kernel is missing")
        except RuntimeError as error:  # CUDA reports its errors so
            self._unavailable = True
            warnings.warn(
                f"CUDA graphs are not used, compiled layers are launched one by one: {error}",
                stacklevel=2,
            )
            return None
        return _GraphReplay(graph, static, out)


def executor_for(model: Backbone) -> CompiledExecutor:
    """A new executor of compiled layers: with CUDA graphs on a GPU.

    Args:
        model: model whose layers run.
    """
    return (CudaGraphExecutor if model.device.type == "cuda" else CompiledExecutor)(model)


@contextmanager
def _capturing(graph: torch.cuda.CUDAGraph, pool: Any) -> Iterator[None]:
    """Capture the kernels that are launched on the current stream."""
    graph.capture_begin(pool, capture_error_mode="thread_local")
    with ExitStack() as failed:
        failed.callback(_end_failed, graph)
        yield
        failed.pop_all()
    graph.capture_end()


def _end_failed(graph: torch.cuda.CUDAGraph) -> None:
    """End a capture within which an error was raised."""
    with suppress(RuntimeError):  # it reports the same error with less detail
        graph.capture_end()


class GraphInputs(NamedTuple):
    """A span of layers and its inputs.

    Attributes:
        first: first layer, from 0.
        stop: end of the span, exclusive.
        bucket: number of columns that the span attends to, unfilled ones included.
        ragged: whether some of the new columns do not belong to a row.
        rotated: number of tensors about positions, mostly cosines and sines, by kind of attention.
        masked: kinds of attention with a mask; the others are causal.
        tensors: hidden states, indices of the new columns, where `ragged` which of them to store,
            cosines and sines of each kind, mask of each kind.
    """

    first: int
    stop: int
    bucket: int
    ragged: bool
    rotated: dict[str, int]
    masked: list[str]
    tensors: list[Tensor]

    @property
    def guard(self) -> tuple[object, ...]:
        """Key that is equal for inputs that the same graph serves."""
        shapes = tuple((t.shape, t.dtype) for t in self.tensors)
        return self[:4], *self.rotated, *self.masked, shapes


class _GraphReplay:
    """A captured span of layers.

    Args:
        graph: the graph.
        static: tensors that the graph reads; inputs are copied into them.
        out: hidden states that the graph writes, (rows, columns, width).
    """

    def __init__(self, graph: torch.cuda.CUDAGraph, static: list[Tensor], out: Tensor) -> None:
        self.graph, self.static, self.out = graph, static, out

    def __call__(self, tensors: list[Tensor]) -> Tensor:
        torch._foreach_copy_(self.static, tensors)
        self.graph.replay()
        return self.out.clone()
