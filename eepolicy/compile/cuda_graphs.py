"""Compiled layers on a CUDA device: a stretch of them is told to the device at once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from eepolicy.compile.executor import CompiledExecutor
from eepolicy.compile.gemv import MAX_CAPTURED_ROWS
from eepolicy.model.families import Rotation
from eepolicy.model.kv_cache import KVBufferPool, KVCache

if TYPE_CHECKING:
    from eepolicy.hooked import HookedModel

#: what is attended to ends at a multiple of so many columns, the last ones masked: a graph for each
KV_BUCKET = 256
#: graphs of a room
MAX_GRAPHS = 256


class CudaGraphExecutor(CompiledExecutor):
    """Runs stretches of a model's layers as CUDA graphs.

    A layer is some ten kernels, which the device runs faster than a host tells it to.  What a
    stretch of layers does to a few new columns is therefore captured, the second time that it is
    inputs for, and replayed: it is told to the device in one call.  A graph belongs to the place
    where keys and values lie, which is used again for the next batch, and attends to more columns
    than are filled, so that one does for many steps.  Prompts, and rows that do not follow each
    other, are told layer by layer.

    Args:
        model: whose layers.
    """

    def __init__(self, model: HookedModel) -> None:
        super().__init__(model)
        self._pool = KVBufferPool(model.depth)
        self._capturing: tuple[torch.cuda.Stream, Any] | None = None
        self._without = False  # there are no graphs here

    def open_cache(self, rows: int, capacity: int) -> KVCache:
        """What remembers keys and values, in a room that outlives it."""
        return KVCache(self.model.depth, rows, capacity, self._pool)

    def run_layers(
        self,
        first: int,
        stop: int,
        hidden: Tensor,
        rotations: dict[str, Rotation],
        masks: dict[str, Tensor | None],
        cache: KVCache,
    ) -> Tensor:
        """Run a stretch of layers; see `Layers.run_layers`."""
        rows, start, _, _ = cache.slots
        prompt, wide = start == 0, hidden[..., 0].numel() > MAX_CAPTURED_ROWS
        if self._broken or self._without or prompt or wide or not isinstance(rows, slice):
            return super().run_layers(first, stop, hidden, rotations, masks, cache)
        inputs = self._graph_inputs(first, stop, hidden, rotations, masks, cache)
        replays, key = cache.buffer.replays, (rows.start, rows.stop, inputs.kind)
        captured: _Replay | None = replays.get(key)
        if captured is None and key in replays:  # it has run as it is
            captured = replays[key] = self._captured(inputs, cache)
        if captured is not None:
            return captured(inputs.tensors)
        out = self._run(inputs, inputs.tensors, cache)
        if out is None:
            return super().run_layers(first, stop, hidden, rotations, masks, cache)
        if len(replays) == MAX_GRAPHS:  # the oldest goes
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
        """A stretch as tensors of few shapes."""
        _, _, end, fresh = cache.slots
        reach = min(-(-end // KV_BUCKET) * KV_BUCKET, cache.capacity)
        kinds = sorted({*self.model.parts.attention[first:stop]})
        tensors, masked = [hidden, cache.column_indices(hidden.device)], []
        if fresh is not None:
            tensors.append(fresh)
        for kind in kinds:
            tensors += rotations.get(kind, ())
        for kind in kinds:
            mask = masks[kind]
            if mask is not None:
                nothing = 0.0 if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
                tensors.append(F.pad(mask, (0, reach - end), value=nothing))
                masked.append(kind)
        rotated = [kind for kind in kinds if kind in rotations]
        return GraphInputs(first, stop, reach, fresh is not None, rotated, masked, tensors)

    def _run(self, inputs: GraphInputs, tensors: Sequence[Tensor], cache: KVCache) -> Tensor | None:
        """A stretch, layer by layer; None where there is no kernel for it."""
        hidden, *rest = tensors
        own, rest = rest[: 1 + inputs.ragged], rest[1 + inputs.ragged :]
        rotations: dict[str, Rotation] = {}
        for kind in inputs.rotated:
            rotations[kind], rest = (rest[0], rest[1]), rest[2:]
        masks = dict(zip(inputs.masked, rest, strict=True))
        seen = self._seen(own[0], inputs.reach, hidden.dtype)
        for index in range(inputs.first, inputs.stop):
            lent, kind = self._lent(index, cache, inputs.reach), self.model.parts.attention[index]
            if lent is None:
                return None
            rotation, mask = rotations.get(kind), masks.get(kind, seen)
            out = self._through(index, hidden, rotation, mask, (*lent[:2], *own))
            if out is None:
                return None
            hidden = out
        return hidden

    def _seen(self, at: Tensor, reach: int, dtype: torch.dtype) -> Tensor:
        """The mask of columns that see all up to their own: (1, 1, columns, reach)."""
        seen = (torch.arange(reach, device=at.device) <= at[:, None])[None, None]
        if self.model.model.config._attn_implementation != "eager":
            return seen
        empty = torch.zeros(seen.shape, dtype=dtype, device=at.device)
        return empty.masked_fill(~seen, torch.finfo(dtype).min)

    def _captured(self, inputs: GraphInputs, cache: KVCache) -> _Replay | None:
        """A stretch as a graph; None where there cannot be any, which is said once."""
        device = self.model.model.device
        with torch.inference_mode(False):  # they outlive the caller's mode
            held = [t.clone() for t in inputs.tensors]
        try:
            if self._capturing is None:
                self._capturing = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
            (stream, pool), graph = self._capturing, torch.cuda.CUDAGraph()
            here = torch.cuda.current_stream(device)
            stream.wait_stream(here)
            with torch.cuda.stream(stream), _capturing(graph, pool):
                out = self._run(inputs, held, cache)
            here.wait_stream(stream)
            if out is None:
                raise RuntimeError("a kernel is missing")
        except Exception as error:
            self._without = True
            warnings.warn(
                f"CUDA graphs are left aside, the device is told layer by layer: {error}",
                stacklevel=2,
            )
            return None
        return _Replay(graph, held, out)


@contextmanager
def _capturing(graph: torch.cuda.CUDAGraph, pool: Any) -> Iterator[None]:
    """What is told to the current stream goes into a graph."""
    graph.capture_begin(pool, capture_error_mode="thread_local")
    try:
        yield
    except BaseException:
        with suppress(RuntimeError):  # it would tell of the same mistake, and less
            graph.capture_end()
        raise
    graph.capture_end()


class GraphInputs(NamedTuple):
    """A stretch of layers, and what it is handed.

    Attributes:
        first: layer, from 0.
        stop: the last layer.
        reach: columns that it attends to, those that are not filled included.
        ragged: some of the new columns are not a row's own.
        rotated: kinds of attention that have cosines and sines.
        masked: kinds that have a mask; the others see all columns up to their own.
        tensors: hidden states, where the new columns go, which of them are a row's own, cosines and
            sines, masks.
    """

    first: int
    stop: int
    reach: int
    ragged: bool
    rotated: list[str]
    masked: list[str]
    tensors: list[Tensor]

    @property
    def kind(self) -> tuple[object, ...]:
        """What a graph is made for."""
        shapes = tuple((t.shape, t.dtype) for t in self.tensors)
        return self[:4], *self.rotated, *self.masked, shapes


class _Replay:
    """A captured stretch.

    Args:
        graph: of it.
        held: the tensors that it reads.
        out: hidden states that it writes.
    """

    def __init__(self, graph: torch.cuda.CUDAGraph, held: list[Tensor], out: Tensor) -> None:
        self.graph, self.held, self.out = graph, held, out

    def __call__(self, tensors: list[Tensor]) -> Tensor:
        torch._foreach_copy_(self.held, tensors)
        self.graph.replay()
        return self.out.clone()
