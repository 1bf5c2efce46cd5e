"""The layers of a model, compiled: one kernel for all that are built alike."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eepolicy.compile.functional import first_same_structure, function_of, tensors_of
from eepolicy.compile.gemv import ONE_SHAPE, Product, Products, padded_gemv, product_of
from eepolicy.compile.head_module import HeadModule, head_module
from eepolicy.compile.kernel_cache import DynamicDims, KernelCache
from eepolicy.compile.sdpa import attention
from eepolicy.model.executor import LayerExecutor
from eepolicy.model.families import Rotation
from eepolicy.model.kv_cache import KVCache

if TYPE_CHECKING:
    from eepolicy.heads.base import ExitHead
    from eepolicy.hooked import HookedModel

#: largest difference from the layers as they are, as a share of the hidden states' largest number.
#: Measured: 1e-6 in float32 (sums are taken in another order), 8e-3 in bfloat16
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8, torch.bfloat16: 5e-2, torch.float16: 1e-2}
#: columns, as a refresh has, up to which attention is written out for many rows too
COLUMNS = 4


class CompiledExecutor(LayerExecutor):
    """Runs a model's layers, as `Backbone.run_layer` does, by code that `torch.compile` makes.

    One layer is compiled and is handed the parameters of the others, so that a policy may stop
    after any of them, and the work is done once: for each small block, as a refresh is, for many
    rows of each few columns, and for all that is wider.

    Args:
        model: whose layers.

    Attributes:
        kernels: that were compiled so far.
    """

    def __init__(self, model: HookedModel) -> None:
        self.model = model
        self._kernels = KernelCache()
        self._layers = [tuple(tensors_of(layer).values()) for layer in model.parts.layers]
        self._alike = [first_same_structure(model.parts.layers, i) for i in range(model.depth)]
        #: by depth and ranges of ids, the head there and what it does
        self._readouts: dict[Hashable, tuple[ExitHead, HeadModule | None]] = {}
        #: keys and values such as a layer makes, (1, heads, 1, d) each
        self._remembered: dict[int, tuple[Tensor, Tensor]] = {}
        self._broken = False

    def __repr__(self) -> str:
        return f"CompiledExecutor({self.kernels} kernels for {len(self._layers)} layers)"

    @property
    def depth(self) -> int:
        return self.model.depth

    @property
    def kernels(self) -> int:
        """Number of kernels that were compiled so far."""
        return self._kernels.made

    def run_layer(
        self,
        index: int,
        hidden: Tensor,
        rotations: dict[str, Rotation],
        masks: dict[str, Tensor | None],
        cache: KVCache,
    ) -> Tensor:
        """Run one layer; see `Backbone.run_layer`."""
        lent = self._lent(index, cache)
        if lent is None:
            return self.model.run_layer(index, hidden, rotations, masks, cache)
        if len(lent) == 3 and min(hidden.shape[:2]) > 1:  # one kernel for what is ragged and is not
            lent = (*lent, torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device))
        kind = self.model.parts.attention[index]
        out = self._through(index, hidden, rotations.get(kind), masks[kind], lent)
        if out is None:
            return self.model.run_layer(index, hidden, rotations, masks, cache)
        cache.write_back(index, *lent[:2])
        return out

    def fill_layer(
        self, index: int, hidden: Tensor, rotations: dict[str, Rotation], cache: KVCache
    ) -> None:
        """Store the keys and values of one layer; see `Backbone.fill_layer`."""
        lent = self._lent(index, cache)
        if lent is not None:
            rotation = rotations.get(self.model.parts.attention[index])
            if self._compiled(_filler, index, hidden, rotation, None, lent) is not None:
                cache.write_back(index, *lent[:2])
                return
        self.model.fill_layer(index, hidden, rotations, cache)

    def _lent(self, index: int, cache: KVCache, reach: int = 0) -> tuple[Tensor, ...] | None:
        """What a layer attends to, if it is known how that looks; see `KVCache.lend`."""
        if self._broken:
            return None
        if index in self._remembered:
            cache.open(index, *self._remembered[index])
        return cache.view(index, reach)

    def _through(
        self,
        index: int,
        hidden: Tensor,
        rotation: Rotation | None,
        mask: Tensor | None,
        lent: tuple[Tensor, ...],
    ) -> Tensor | None:
        """Hidden states behind a layer; None where there is no kernel for it."""
        out = self._compiled(_runner, index, hidden, rotation, mask, lent)
        return None if out is None else out[0]

    def _compiled(
        self,
        make: Makes,
        index: int,
        hidden: Tensor,
        rotation: Rotation | None,
        mask: Tensor | None = None,
        lent: tuple[Tensor, ...] = (),
    ) -> tuple[Tensor, ...] | None:
        """What a layer makes, where there is a kernel for such inputs, or one can be made.

        Args:
            make: makes what is compiled of a layer.
            index: the layer, from 0.
            hidden: (rows, columns, width).
            rotation: of the columns.
            mask: of the columns.
            lent: by `KVCache.lend`.
        """
        first, product = self._alike[index], product_of(hidden)
        exact = hidden.shape if product in ONE_SHAPE else None
        # attention is written as a sum for each of a few columns, so that their number is fixed
        small = hidden.device.type == "cpu" and hidden.shape[1] <= COLUMNS
        few = hidden.shape[1] if small and product is None else None
        if mask is None and hidden.shape[1] > 1 and (product or few):
            # a short prompt: as a refresh, whose kernel it shares
            mask = _causal(hidden)
        key = (make, first, product, exact, few, rotation is None, mask is None, len(lent))
        kind = (
            key,
            hidden.shape,
            hidden.dtype,
            rotation and rotation[0].shape,
            mask is not None
            and (mask.dtype, mask.shape[:-1], mask.is_contiguous() or mask.stride()),
            lent and (lent[0].stride()[2:], lent[0].shape[2] == 1),
        )
        # a part of a wider block would have strides of its own, and so a kernel
        hidden = hidden.contiguous()
        given = (*self._layers[index], hidden, *(rotation or ()), *_only(mask), *lent)
        return self.run(
            key,
            kind,
            lambda: make(
                self.model.parts.layers[first],
                product or (F.linear if few else None),
                rotation is not None,
                mask is not None,
            ),
            given,
            lambda: _changing((bool(exact), bool(exact or few)), hidden, rotation, mask, lent),
        )

    def logits(self, hidden: Tensor, depth: int, over: Sequence[tuple[int, int]] = ()) -> Tensor:
        """Read out hidden states at a depth; see `Backbone.logits`."""
        if self._broken:
            return self.model.logits(hidden, depth, over)
        out = self._read(hidden, depth, tuple(over))
        # what reads out other ids is refused there
        if out is None or out[0].shape[-1] != self.model.model.config.vocab_size:
            with Products(self._head_product):
                return self.model.logits(hidden, depth, over)
        return out[0]

    def _read(
        self, hidden: Tensor, depth: int, ranges: tuple[tuple[int, int], ...]
    ) -> tuple[Tensor, ...] | None:
        """What a known head reads out, in one kernel for all depths; None where there is none."""
        head = self.model.lens if depth == self.model.depth else self.model.heads
        where = depth, ranges
        if where not in self._readouts or self._readouts[where][0] is not head:
            vocabulary = self.model.model.config.vocab_size
            self._readouts[where] = head, head_module(head, depth, ranges, vocabulary)
        readout, product = self._readouts[where][1], product_of(hidden)
        if readout is None or product is None:
            return None
        hidden, exact = hidden.contiguous(), product in ONE_SHAPE
        key = (product, readout.structure, hidden.shape if exact else None)
        return self.run(
            key,
            (key, hidden.shape, hidden.dtype),
            lambda: _reader(readout, product),
            (*readout.tensors, hidden),
            lambda: _changing((exact, exact), hidden, None),
        )

    def _head_product(self, vectors: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """What a head makes of some vectors."""
        product, out = product_of(vectors), None
        if product is not None:
            vectors, exact = vectors.contiguous(), product in ONE_SHAPE
            key = (product, weight.shape, bias is None, vectors.shape if exact else None)
            kind = (key, vectors.shape, vectors.dtype, weight.stride())
            given = (vectors, weight, *_only(bias))
            out = self.run(
                key, kind, lambda: product, given, lambda: _changing((exact, exact), vectors, None)
            )
        return F.linear(vectors, weight, bias) if out is None else out[0]

    def run(self, *asked: Any) -> tuple[Tensor, ...] | None:
        """See `KernelCache.run`; where nothing can be compiled, that is said once and left."""
        if self._broken:
            return None
        try:
            return self._kernels.run(*asked)
        except Exception as error:
            self._give_up(error)
            return None

    @torch.no_grad()
    def check(self) -> bool:
        """Compile, and compare each layer with the stock one.

        One position is compiled; two blocks before it, of which the second is masked in the stock
        layers too, are only run as they are written for the compiler.

        Returns:
            Whether they agree.  Where they do not, or nothing can be compiled here, a warning says
            why, and the layers run as they are.
        """
        model, config = self.model, self.model.model.config
        generator = torch.Generator().manual_seed(0)
        blocks = [
            torch.randn(1, columns, config.hidden_size, generator=generator)
            for columns in (2, 2, 1)
        ]
        stock, ours = (KVCache(model.depth, 1, 5) for _ in range(2))
        kernels = self._kernels
        for index in range(model.depth):
            for block, start in zip(blocks, (0, 2, 4), strict=True):
                right = self._step(model.run_layer, index, block, start, stock)
                if index not in self._remembered:
                    keys, values = stock.layer(index, 1)
                    self._remembered[index] = keys.clone(), values.clone()
                if block.shape[1] > 1:
                    self._kernels = _AsWritten()
                left = self._step(self.run_layer, index, block, start, ours)
                self._kernels = kernels
                if self._broken:
                    return False
                error = ((left - right).abs().max() / right.abs().max()).item()
                if not error <= TOLERANCE.get(model.model.dtype, 0.0):
                    self._give_up(f"layer {index + 1} differs by {error:.1e} when it is compiled")
                    return False
        return True

    def _step(
        self, run: Callable[..., Tensor], index: int, states: Tensor, start: int, cache: KVCache
    ) -> Tensor:
        """Some columns of the check through one layer."""
        like, end = self.model.model, start + states.shape[1]
        rotations = self.model.rotations(end)
        here = {
            k: (cos[0, start:][None], sin[0, start:][None]) for k, (cos, sin) in rotations.items()
        }
        masks = self.model.block_masks(end - start, start)
        cache.set_slots(slice(None), start, end)
        return run(index, states.to(like.device, like.dtype), here, masks, cache)

    def _give_up(self, why: object) -> None:
        self._broken = True
        told = str(why).strip().splitlines()
        warnings.warn(
            f"compile=True is left aside, the layers run as they are: {told[0] if told else why!r}",
            stacklevel=2,
        )


class _AsWritten(KernelCache):
    """Runs functions as they are written for the compiler, without it."""

    def run(
        self,
        key: Hashable,
        kind: Hashable,
        make: Callable[[], Callable[..., Any]],
        given: Sequence[Tensor],
        changing: object,
    ) -> tuple[Tensor, ...]:
        out = make()(*given)
        return out if isinstance(out, tuple) else (out,)


class _Columns:
    """Keys and values of one layer, as a stock attention layer takes them."""

    def __init__(
        self, keys: Tensor, values: Tensor, at: Tensor, fresh: Tensor | None = None
    ) -> None:
        self.keys, self.values, self.at = keys, values, at
        self.fresh = None if fresh is None else fresh[:, None, :, None]

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        for held, new in ((self.keys, keys), (self.values, values)):
            if self.fresh is not None:
                new = torch.where(self.fresh, new, held[:, :, self.at])
            # by index: `index_copy_` would be compiled to a copy of all that is remembered
            held[:, :, self.at] = new
        return self.keys, self.values

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        *,
        fixed: bool,
    ) -> Tensor:
        """Stands in for `F.scaled_dot_product_attention`, which see, without dropout.

        What is causal comes with a mask here; a layer that relies on `is_causal` is found by
        `check`.

        Keys that were repeated for the heads that share them are taken as they were before: a copy
        of all that is remembered would cost as much as the attention.
        """
        if key.shape[1] > self.keys.shape[1]:
            key, value = self.keys, self.values
        return attention(query, key, value, attn_mask, scale, fixed)


#: what a compiled function is handed after the parameters and the hidden states
Makes = Callable[[nn.Module, Product | None, bool, bool], Callable[..., Any]]


def _runner(
    layer: nn.Module, product: Product | None, rotated: bool, masked: bool
) -> Callable[..., Tensor]:
    """A layer as a function of its parameters and of all that `run_layer` hands it.

    Args:
        layer: the layer.
        product: how its products are written, and attention with them; `F.linear` leaves products
            to the library, None both.
        rotated: cosines and sines are handed to it.
        masked: so is a mask.

    Returns:
        A function of the parameters, hidden states, cosines and sines, mask, and what
        `KVCache.lend` gives.
    """
    call, count = function_of(layer), len(tensors_of(layer))

    def run(*given: Tensor) -> Tensor:
        hidden, *more = given[count:]
        arguments: dict[str, Any] = {"attention_mask": None, "use_cache": True}
        if rotated:
            arguments["position_embeddings"], more = (more[0], more[1]), more[2:]
        if masked:
            arguments["attention_mask"], more = more[0], more[1:]
        arguments["past_key_values"] = held = _Columns(*more)
        attend = partial(held.attend, fixed=product is not padded_gemv)
        with Products(product, attend) if product else nullcontext():
            out: Tensor | tuple[Tensor, ...] = call(given[:count], hidden, **arguments)
        return out[0] if isinstance(out, tuple) else out

    return run


def _filler(
    layer: nn.Module, product: Product | None, rotated: bool, masked: bool
) -> Callable[..., tuple[()]]:
    """As `_runner`, but for the keys and values that the layer remembers.

    Nobody asks for what the layer makes of them, so the compiler leaves all of that away.
    """
    run = _runner(layer, product, rotated, masked)

    def fill(*given: Tensor) -> tuple[()]:
        run(*given)
        return ()

    return fill


def _reader(readout: HeadModule, product: Product) -> Callable[..., Tensor]:
    """What a head does at a depth, as a function of its tensors and of hidden states."""
    call = function_of(readout)

    def read(*given: Tensor) -> Tensor:
        with Products(product):
            out: Tensor = call(given[:-1], given[-1])
        return out

    return read


def _causal(hidden: Tensor) -> Tensor:
    """The mask of a block with nothing before it: (1, 1, columns, columns) of bool."""
    shape = (1, 1, hidden.shape[1], hidden.shape[1])
    return torch.ones(shape, dtype=torch.bool, device=hidden.device).tril()


def _only(tensor: Tensor | None) -> tuple[Tensor, ...]:
    return () if tensor is None else (tensor,)


def _changing(
    fixed: tuple[bool, bool],
    hidden: Tensor,
    rotation: Rotation | None,
    mask: Tensor | None = None,
    lent: Sequence[Tensor] = (),
) -> list[DynamicDims]:
    """Sizes and strides that change from call to call: one kernel is made for all of them.

    `fixed`: whether the number of rows is not one of them, and that of columns; what is remembered
    always is.
    """
    block = [dim for dim in (0, 1) if not fixed[dim]]  # of (rows, columns, ...)
    changing = [
        DynamicDims(tensor, [dim for dim in block if dim < tensor.ndim - 1])
        for tensor in (hidden, *(rotation or ()))
    ]
    if mask is not None:  # (rows, heads, columns, remembered)
        changing.append(DynamicDims(mask, [2 * dim for dim in block] + [mask.ndim - 1]))
    if lent:
        # keys and values (rows, heads, remembered, d): how far apart tells what there is room for
        sizes = [0, 2] if 0 in block else [2]
        changing += [DynamicDims(tensor, sizes, (0, 1)) for tensor in lent[:2]]
        changing += [DynamicDims(tensor, [0] if 1 in block else []) for tensor in lent[2:3]]
        changing += [DynamicDims(tensor, block) for tensor in lent[3:]]
    return changing
