"""Compiled layers: one kernel serves all layers of the same structure."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eepolicy.compile.gemv import ONE_SHAPE, Products, library, product_of
from eepolicy.compile.head_module import HeadModule, head_module
from eepolicy.compile.kernel_cache import KERNEL_ERRORS, KernelCache, KernelCall
from eepolicy.compile.layer_functions import (
    MakeFunction,
    causal_mask,
    dynamic_dims,
    fill_function,
    layer_function,
    optional,
    readout_function,
    unrolled_columns,
)
from eepolicy.compile.layer_table import LayerTable
from eepolicy.compile.native import serves
from eepolicy.compile.parity import (
    TOLERANCE,
    UncompiledKernels,
    check_blocks,
    relative_error,
    run_block,
)
from eepolicy.compile.spans import Span, span_table, with_own_columns
from eepolicy.heads.base import ExitHead
from eepolicy.heads.weights import obstacle
from eepolicy.model.backbone import Backbone
from eepolicy.model.changes import Snapshot
from eepolicy.model.executor import LayerExecutor
from eepolicy.model.families import Rotation
from eepolicy.model.kv_cache import KVCache


class CompiledExecutor(LayerExecutor):
    """Runs the layers of a model, as `Backbone.run_layer` does, in code from `torch.compile`.

    One layer is compiled and takes the parameters of the others as inputs.  A policy may therefore
    stop after any layer, and the compiler runs once: for each small block, such as a refresh, for
    many rows of each small number of columns, and for all wider blocks.

    Args:
        model: model whose layers run.

    Attributes:
        kernels: number of kernels that were compiled so far.
    """

    def __init__(self, model: Backbone) -> None:
        self.model = model
        self._kernels = KernelCache()
        #: numbers of the structures of layers
        self._structures: dict[Hashable, int] = {}
        #: structures in which a layer was compared with the stock layer
        self._compared: WeakKeyDictionary[nn.Module, set[int]] = WeakKeyDictionary()
        self._snapshot: Snapshot | None = None
        self._use_layers(model.layers)
        self._readouts: dict[Hashable, tuple[ExitHead, HeadModule | None]] = {}  # see `_read`
        #: by template, keys and values of the shape that it makes, (1, heads, 1, d) each
        self._sample_kv: dict[int | None, tuple[Tensor, Tensor]] = {}
        self._broken, self._compiles_heads = False, True
        self._warned: set[str] = set()

    def __repr__(self) -> str:
        return f"CompiledExecutor({self.kernels} kernels for {self.depth} layers)"

    @property
    def depth(self) -> int:
        return self.model.depth

    @property
    def num_layers(self) -> int:
        if self.table.layers is not self.model.layers:  # other heads own other layers
            self._use_layers(self.model.layers)
        return len(self.table.layers)

    def _use_layers(self, layers: Sequence[nn.Module]) -> None:
        """Take the tensors and structures of all layers."""
        self.table = LayerTable(layers, self.depth, self.model.device, self._structures)

    def open_cache(self, rows: int, capacity: int) -> KVCache:
        """Create a cache; see `LayerExecutor.open_cache`."""
        cache = super().open_cache(rows, capacity)
        self.table.read_addresses()
        return cache

    @property
    def kernels(self) -> int:
        """Number of kernels that were compiled so far."""
        return self._kernels.num_kernels

    def run_layer(
        self,
        index: int,
        hidden: Tensor,
        rotations: dict[str, Rotation],
        masks: dict[str, Tensor | None],
        cache: KVCache,
    ) -> Tensor:
        """Run one layer; see `Backbone.run_layer`."""
        view = self._view(index, hidden, cache)
        if view is None:
            return self.model.run_layer(index, hidden, rotations, masks, cache)
        view = with_own_columns(view, hidden)
        kind = self.model.attention[index]
        out = self._layer_output(index, hidden, rotations.get(kind), masks[kind], view)
        if out is None:
            return self.model.run_layer(index, hidden, rotations, masks, cache)
        cache.write_back(index, *view[:2])
        return out

    def run_layers(
        self,
        first: int,
        stop: int,
        hidden: Tensor,
        rotations: dict[str, Rotation],
        masks: dict[str, Tensor | None],
        cache: KVCache,
    ) -> Tensor:
        """Run consecutive layers; see `LayerExecutor.run_layers`."""
        while first < stop:
            end = self.table.span_end(first, stop, self.model.attention)
            out = None
            if end - first > 1:
                out = self._run_plan(first, end, hidden, rotations, masks, cache)
            if out is None:
                end = first + 1
                out = self.run_layer(first, hidden, rotations, masks, cache)
            hidden, first = out, end
        return hidden

    def _run_plan(
        self,
        first: int,
        stop: int,
        hidden: Tensor,
        rotations: dict[str, Rotation],
        masks: dict[str, Tensor | None],
        cache: KVCache,
    ) -> Tensor | None:
        """Run layers of one structure in one native call; None where there is no plan for them."""
        sample = self._sample_kv.get(self.table.templates[first])
        view = self._view(first, hidden, cache)
        if view is None or sample is None or isinstance(cache.slots[0], Tensor):
            return None
        view, kind = with_own_columns(view, hidden), self.model.attention[first]
        call = self._prepared(layer_function, first, hidden, rotations.get(kind), masks[kind], view)
        plan, count = self._kernels.plan(call.guard), len(self.table.tensors[first])
        if plan is None:
            return None
        span = Span(first, stop, call.args, count, len(view), sample)
        table = span_table(plan, span, cache, self.table.addresses)
        out = plan.run(call.args, table, chained=count)
        return None if out is None else out[0]

    def fill_layer(
        self, index: int, hidden: Tensor, rotations: dict[str, Rotation], cache: KVCache
    ) -> None:
        """Store the keys and values of one layer; see `Backbone.fill_layer`."""
        view = self._view(index, hidden, cache)
        if view is not None:
            rotation = rotations.get(self.model.attention[index])
            if self._call_layer(fill_function, index, hidden, rotation, None, view) is not None:
                cache.write_back(index, *view[:2])
                return
        self.model.fill_layer(index, hidden, rotations, cache)

    def _view(
        self, index: int, hidden: Tensor, cache: KVCache, columns: int = 0
    ) -> tuple[Tensor, ...] | None:
        """`KVCache.view` of a layer; None where nothing is compiled or stored."""
        if self._broken or not self.table.compiles(index, hidden):
            return None
        sample = self._sample_kv.get(self.table.templates[index])
        if sample is not None:
            cache.open(index, *sample)
        return cache.view(index, columns)

    def _layer_output(
        self,
        index: int,
        hidden: Tensor,
        rotation: Rotation | None,
        mask: Tensor | None,
        view: tuple[Tensor, ...],
    ) -> Tensor | None:
        """Hidden states after a layer, (rows, columns, width); None where there is no kernel."""
        out = self._call_layer(layer_function, index, hidden, rotation, mask, view)
        return None if out is None else out[0]

    def _call_layer(
        self,
        make: MakeFunction,
        index: int,
        hidden: Tensor,
        rotation: Rotation | None,
        mask: Tensor | None,
        view: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...] | None:
        """Call the kernel of a layer, which is compiled at the first call.

        Args:
            make: makes the function that is compiled.
            index: index of the layer, from 0.
            hidden: (rows, columns, width).
            rotation: cosines and sines of the columns, (rows, columns, d) each.
            mask: (rows or 1, heads or 1, columns, stored columns).
            view: tensors of `KVCache.view`.

        Returns:
            The outputs of the function; None where it cannot be compiled.
        """
        return self.run(*self._prepared(make, index, hidden, rotation, mask, view))

    def _prepared(
        self,
        make: MakeFunction,
        index: int,
        hidden: Tensor,
        rotation: Rotation | None,
        mask: Tensor | None,
        view: tuple[Tensor, ...],
    ) -> KernelCall:
        """The call of a layer's kernel; arguments as in `_call_layer`."""
        template, columns = self.table.templates[index], hidden.shape[1]
        product = None if serves(hidden) else product_of(hidden)
        exact = hidden.shape if product in ONE_SHAPE else None
        unrolled = unrolled_columns(hidden) if product is None else None
        if mask is None and columns > 1 and (product or unrolled is not None):
            # a short prompt shares the kernel of a refresh, which has a mask
            mask = causal_mask(hidden)
        rotated = len(rotation or ())
        key = (make, template, product, exact, unrolled, rotated, mask is None, len(view))
        guard = (
            key,
            hidden.shape,
            hidden.dtype,
            rotation and rotation[0].shape,
            mask is not None
            and (mask.dtype, mask.shape[:-1], mask.is_contiguous() or mask.stride()),
            view and (view[0].stride()[2:], view[0].shape[2] == 1),
        )
        # a part of a wider block has strides of its own, and would need another kernel
        hidden = hidden.contiguous()
        args = (*self.table.tensors[index], hidden, *(rotation or ()), *optional(mask), *view)
        written_out = None if unrolled is None else F.linear if unrolled else library
        return KernelCall(
            key,
            guard,
            lambda: make(
                self.table.layers[index],
                product or written_out,
                rotated,
                mask is not None,
            ),
            args,
            lambda: dynamic_dims(
                (bool(exact), bool(exact or unrolled)), hidden, rotation, mask, view
            ),
        )

    def logits(
        self, hidden: Tensor, depth: int, vocab_ranges: Sequence[tuple[int, int]] = ()
    ) -> Tensor:
        """Read out hidden states at a depth; see `Backbone.logits`."""
        if self._broken or not self._compiles_heads:
            return self.model.logits(hidden, depth, vocab_ranges)
        out = self._read(hidden, depth, tuple(vocab_ranges))
        # the backbone refuses a head that reads out other ids
        if out is None or out[0].shape[-1] != self.model.vocab_size:
            with Products(self._head_product):
                return self.model.logits(hidden, depth, vocab_ranges)
        return out[0]

    def _read(
        self, hidden: Tensor, depth: int, ranges: tuple[tuple[int, int], ...]
    ) -> tuple[Tensor, ...] | None:
        """Read out a known head in one kernel, which serves all depths; None without a kernel."""
        head = self.model.lens if depth == self.model.depth else self.model.heads
        key: Hashable = depth, ranges
        stored, readout = self._readouts.get(key, (None, None))
        if stored is not head or (readout is not None and not readout.is_current()):
            readout = head_module(head, depth, ranges, self.model.vocab_size)
            self._readouts[key] = head, readout
        product = None if readout is None else readout.product_for(hidden)
        if readout is None or product is None:
            return None
        hidden, exact = hidden.contiguous(), product in ONE_SHAPE
        key = (product, readout.structure, hidden.shape if exact else None)
        return self.run(
            key,
            (key, hidden.shape, hidden.dtype),
            lambda: readout_function(readout, product),
            (*readout.tensors, hidden),
            lambda: dynamic_dims((exact, exact), hidden, None),
        )

    def _head_product(self, vectors: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Replace `F.linear` in a head that is not compiled as a whole; shapes as there."""
        product, out = product_of(vectors), None
        if product is not None:
            vectors, exact = vectors.contiguous(), product in ONE_SHAPE
            key = (product, weight.shape, bias is None, vectors.shape if exact else None)
            guard = (key, vectors.shape, vectors.dtype, weight.stride())
            args = (vectors, weight, *optional(bias))
            out = self.run(
                key,
                guard,
                lambda: product,
                args,
                lambda: dynamic_dims((exact, exact), vectors, None),
            )
        return F.linear(vectors, weight, bias) if out is None else out[0]

    def run(self, *args: Any) -> tuple[Tensor, ...] | None:
        """Call `KernelCache.run`; an error of the compiler gives one warning and turns it off."""
        if self._broken:
            return None
        try:
            return self._kernels.run(*args)
        except KERNEL_ERRORS as error:
            self._turn_off(error)
            return None

    @torch.no_grad()
    def check(self) -> bool:
        """Compare each compiled layer with the stock one, at the first call and after changes.

        Changes are hooks, adapters, replaced modules and moved weights.  Weights that are changed
        in place are read anyway.  A kernel is made again only for a structure that is new.

        A single column is compiled.  The two wider blocks before it run the function that would be
        compiled, without the compiler.

        Returns:
            Whether compiled layers can be used now.  If they differ, or if nothing can be compiled,
            a warning gives the reason.
        """
        model, lens = self.model, self.model.lens
        roots = (*model.layers, lens.norm, lens.head, model.heads)
        if self._snapshot is None or not self._snapshot.is_current(roots):
            self._snapshot, self._broken = Snapshot(roots), False
            self._readouts.clear()
            self._compiles_heads = obstacle(lens.norm, lens.head, model.heads) is None
            self._use_layers(model.layers)
            self._compare_layers()
            if not self._broken and (reason := self.table.describe_obstacles()):
                self._warn(f"compile=True: {reason}")
        return not self._broken and any(t is not None for t in self.table.templates[: self.depth])

    def _compare_layers(self) -> None:
        """Compare those layers that were not compared in their structure before."""
        model, kernels = self.model, self._kernels
        blocks = check_blocks(model)
        columns = sum(block.hidden.shape[1] for block in blocks)
        stock, ours = (KVCache(model.depth, 1, columns) for _ in range(2))
        for index, template in enumerate(self.table.templates[: model.depth]):
            compared = self._compared.setdefault(self.table.layers[index], set())
            if template is None or template in compared:
                continue
            for block in blocks:
                expected = run_block(model, model.run_layer, index, block, stock)
                if template not in self._sample_kv:
                    keys, values = stock.layer(index, 1)
                    self._sample_kv[template] = keys.clone(), values.clone()
                if block.hidden.shape[1] > 1:
                    self._kernels = UncompiledKernels()
                out = run_block(model, self.run_layer, index, block, ours)
                self._kernels = kernels
                if self._broken:
                    return
                error = relative_error(out, expected)
                if not error <= TOLERANCE.get(model.model.dtype, 0.0):
                    self._turn_off(f"layer {index + 1} differs by {error:.1e} when it is compiled")
                    return
            compared.add(template)

    def _turn_off(self, reason: object) -> None:
        self._broken = True
        lines = str(reason).strip().splitlines() or [repr(reason)]
        self._warn(f"compile=True has no effect, the stock layers run: {lines[0]}")

    def _warn(self, message: str) -> None:
        """Warn once."""
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=3)
