"""The layers of a model, compiled: one kernel for all that are built alike."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from eepolicy.cache import ColumnCache
from eepolicy.model.adapters import Rotation

if TYPE_CHECKING:
    from eepolicy.model.hooked import HookedModel

T = TypeVar("T")
#: of vectors (..., width) with a weight (out, width) and a bias, if any: (..., out)
Product = Callable[..., Tensor]

#: columns of a block beyond which the stock kernels are as fast: prompts are not compiled
WIDEST = 16
#: vectors, on a CPU, up to which a product with a weight is written as sums.  Measured on layers of
#: the pocket model and of SmolLM2, as a share of the library's time: 0.6 and 0.7 for four vectors,
#: 0.6 and 0.8 for six, 0.7 and 1.0 for eight
FEW = 8
#: vectors, on a CPU, up to which each number of them has kernels of its own: a refresh is of few
EXACT = 4
#: numbers of vectors that stay in the cache next to the processor (half of 32 KiB: two processes
#: may share it), so that a row of a weight meets all of them before the next one is read.  Measured
#: for three vectors of 576: 1.0 of the time of one, and 1.5 where they take turns
NEAR = 3600
#: rows of a weight that meet one vector after the other where those do not stay so near
BLOCK = 32
#: rows of a weight from which that pays: below, calling the kernel takes longer
NARROWEST = 32
#: largest difference from the layers as they are, as a share of the hidden states' largest number.
#: Measured: 1e-6 in float32 (sums are taken in another order), 8e-3 in bfloat16
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8, torch.bfloat16: 5e-2, torch.float16: 1e-2}


class CompiledLayers:
    """Runs a model's layers, as `HookedModel.run_layer` does, by code that `torch.compile` makes.

    One layer is compiled and is handed the parameters of the others, so that a policy may stop
    after any of them, and the work is done once: for each small block, as a refresh is, and for
    wider ones of one row or several, one column or several.  Blocks that do not fit (prompts, rows
    that miss different columns) run as before.

    Args:
        model: whose layers.

    Attributes:
        kernels: that were compiled so far.
    """

    def __init__(self, model: HookedModel) -> None:
        self.model = model
        self.kernels = 0
        self._layers = [_tensors(layer) for layer in model.parts.layers]
        self._alike = [_first_alike(model.parts.layers, i) for i in range(model.depth)]
        #: what is compiled: from what, for which layer and inputs
        self._made: dict[tuple[object, ...], Callable[..., Any]] = {}
        #: kinds of inputs that have a kernel, and those that get none
        self._seen: set[tuple[object, ...]] = set()
        self._refused: set[tuple[object, ...]] = set()
        self._broken = False

    def __repr__(self) -> str:
        return f"CompiledLayers({self.kernels} kernels for {len(self._layers)} layers)"

    def run_layer(
        self,
        index: int,
        hidden: Tensor,
        rotations: dict[str, Rotation],
        masks: dict[str, Tensor | None],
        cache: ColumnCache,
    ) -> Tensor:
        """Run one layer; see `HookedModel.run_layer`."""
        lent = None
        if hidden.shape[1] <= WIDEST and not self._broken:
            lent = cache.lend(index)
        if lent is None:
            return self.model.run_layer(index, hidden, rotations, masks, cache)
        kind = self.model.parts.attention[index]
        mask, keys = masks[kind], lent[0]
        looks = None if mask is None else mask.shape[:-1]
        # a part of a wider block would have strides of its own, and so a kernel
        given = (hidden.contiguous(), rotations.get(kind), mask, *lent)
        out: Tensor | None = self._compiled(_runner, index, given, (keys.stride(), looks))
        if out is None:
            return self.model.run_layer(index, hidden, rotations, masks, cache)
        cache.take_back(index, *lent[:2])
        return out

    def fill_layer(
        self, index: int, hidden: Tensor, rotations: dict[str, Rotation], cache: ColumnCache
    ) -> None:
        """Store the keys and values of one layer; see `HookedModel.fill_layer`."""
        made = None
        if not self._broken:
            rotation = rotations.get(self.model.parts.attention[index])
            made = self._compiled(_filler, index, (hidden, rotation), ())
        if made is None:
            self.model.fill_layer(index, hidden, rotations, cache)
        else:
            cache.store(index, *made)

    def _compiled(
        self,
        make: Callable[[nn.Module, Product | None], Callable[..., Any]],
        index: int,
        given: tuple[Any, ...],
        more: tuple[object, ...],
    ) -> Any:
        """What a layer makes, where there is a kernel for such inputs, or one can be made.

        Args:
            make: makes what is compiled of a layer.
            index: the layer, from 0.
            given: to it, hidden states first.
            more: what tells inputs apart beside the shape of the hidden states.
        """
        hidden, first = given[0], self._alike[index]
        shape = (make, first, hidden.shape, hidden.stride(), *more)
        if shape in self._refused:
            return None
        product = _product_of(hidden)
        exact = hidden.shape if product is _near_product else None
        layer, tensors = self.model.parts.layers[first], self._layers[index]
        run = self._kernel(lambda: make(layer, product), (make, first, product, exact))
        if shape in self._seen:
            try:  # inputs of this kind were looked over before: only tell the kernels apart
                with torch.compiler.set_stance(skip_guard_eval_unsafe=True):
                    return run(tensors, *given)
            except RuntimeError:  # none of them is for it
                self._seen.discard(shape)
        _mark(exact is not None, *given)
        try:
            with _quiet():
                out = run(tensors, *given)
        except Exception as error:
            if "recompile" in f"{type(error).__name__} {error}".lower():
                self._refused.add(shape)
            else:
                self._give_up(error)
            return None
        self._seen.add(shape)
        return out

    def logits(self, hidden: Tensor, depth: int, over: Sequence[tuple[int, int]] = ()) -> Tensor:
        """Read out hidden states at a depth; see `HookedModel.logits`."""
        with nullcontext() if self._broken else _Products(self._head_product):
            return self.model.logits(hidden, depth, over)

    def _head_product(self, vectors: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """What a head makes of some vectors."""
        product = _product_of(vectors)
        if product is None:
            return F.linear(vectors, weight, bias)
        exact = vectors.shape if product is _near_product else None
        if exact is None:
            _mark(False, vectors, None)
        run = self._kernel(lambda: product, (product, weight.shape, exact))
        return run(vectors, weight, bias)

    @torch.no_grad()
    def check(self) -> bool:
        """Compile, and compare each layer with the stock one.

        Returns:
            Whether they agree.  Where they do not, or nothing can be compiled here, a warning says
            why, and the layers run as they are.
        """
        model, config = self.model, self.model.model.config
        generator = torch.Generator().manual_seed(0)
        before, newest = (
            torch.randn(1, columns, config.hidden_size, generator=generator) for columns in (2, 1)
        )
        stock, ours = (ColumnCache(model.depth, 1, 3) for _ in range(2))
        for index in range(model.depth):
            for cache in (stock, ours):
                self._step(model.run_layer, index, before, 0, cache)
            right = self._step(model.run_layer, index, newest, 2, stock)
            left = self._step(self.run_layer, index, newest, 2, ours)
            if self._broken:
                return False
            error = ((left - right).abs().max() / right.abs().max()).item()
            if not error <= TOLERANCE.get(model.model.dtype, 0.0):
                self._give_up(f"layer {index + 1} differs by {error:.1e} when it is compiled")
                return False
        return True

    def _step(
        self, run: Callable[..., Tensor], index: int, states: Tensor, start: int, cache: ColumnCache
    ) -> Tensor:
        """Some columns of the check through one layer."""
        like, end = self.model.model, start + states.shape[1]
        rotations = self.model.rotations(end)
        here = {
            k: (cos[0, start:][None], sin[0, start:][None]) for k, (cos, sin) in rotations.items()
        }
        masks = self.model.block_masks(end - start, start)
        cache.address(None, start, end)
        return run(index, states.to(like.device, like.dtype), here, masks, cache)

    def _kernel(
        self, make: Callable[[], Callable[..., T]], key: tuple[object, ...]
    ) -> Callable[..., T]:
        """What was compiled under a key, or a function that is compiled when it is called."""
        if key not in self._made:
            self._made[key] = self._compile(make())
        return self._made[key]

    def _compile(self, function: Callable[..., T]) -> Callable[..., T]:
        """A function, compiled when it is called."""
        own = FunctionType(
            # dynamo makes eight kernels of a code object at most: each has its own
            function.__code__.replace(co_name=f"{function.__name__}_{id(self)}_{len(self._made)}"),
            function.__globals__,
            argdefs=function.__defaults__,
            closure=function.__closure__,
        )
        return torch.compile(own, fullgraph=True, backend=self._backend)

    def _backend(self, graph: Any, inputs: Any) -> Any:
        from torch._inductor.compile_fx import compile_fx

        self.kernels += 1
        return compile_fx(graph, inputs)

    def _give_up(self, why: object) -> None:
        self._broken = True
        told = str(why).strip().splitlines()
        warnings.warn(
            f"compile=True is left aside, the layers run as they are: {told[0] if told else why!r}",
            stacklevel=2,
        )


class _Columns:
    """Keys and values of one layer, as a stock attention layer takes them."""

    def __init__(self, keys: Tensor, values: Tensor, at: Tensor) -> None:
        self.keys, self.values, self.at = keys, values, at

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        self.keys.index_copy_(2, self.at, keys)
        self.values.index_copy_(2, self.at, values)
        return self.keys, self.values


class _Caught:
    """Keys and values that an attention layer made, and nothing before them."""

    keys: Tensor
    values: Tensor

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        self.keys, self.values = keys, values
        return keys, values


class _Products(TorchFunctionMode):
    """Products with a weight, written in another way.

    A CPU's library for products takes longer for few vectors than reading the weight does; written
    as sums, the compiler joins them with what is around.
    """

    def __init__(self, product: Product) -> None:
        self.product = product

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.linear and not kwargs and len(args[1]) >= NARROWEST:
            return self.product(*args)
        return func(*args, **(kwargs or {}))


def _product_of(hidden: Tensor) -> Product | None:
    """How products of so many vectors are written; None where the library's are as fast."""
    vectors = hidden.numel() // hidden.shape[-1]
    if hidden.device.type != "cpu" or vectors > FEW:
        return None
    return _near_product if vectors <= EXACT else _product


def _product(vectors: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., width) with (out, width): (..., out).  Vectors meet blocks of the weight in turn."""
    out, width = weight.shape
    block = BLOCK if out % BLOCK == 0 else out
    blocks = weight.reshape(-1, 1, block, width)
    product = (vectors.reshape(-1, 1, width) * blocks).sum(-1)  # (blocks, vectors, block)
    product = product.transpose(0, 1).reshape(*vectors.shape[:-1], out)
    return product if bias is None else product + bias


def _near_product(vectors: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., width) with (out, width): (..., out).  Rows of the weight meet all vectors at once."""
    if vectors.numel() > NEAR:
        return _product(vectors, weight, bias)
    product = (weight.unsqueeze(1) * vectors.reshape(-1, vectors.shape[-1])).sum(-1)
    # stacked, and not transposed: the compiler would lay out all that follows that way too
    product = torch.stack(product.unbind(1)).view(*vectors.shape[:-1], len(weight))
    return product if bias is None else product + bias


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the compiler's own lines where it makes no more kernels, as is expected."""
    log = logging.getLogger("torch._dynamo.convert_frame")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _mark(
    exact: bool,
    hidden: Tensor,
    rotation: Rotation | None,
    mask: Tensor | None = None,
    keys: Tensor | None = None,
    values: Tensor | None = None,
    at: Tensor | None = None,
) -> None:
    """Say which sizes change from call to call, so that one kernel is made for all of them.

    `exact`: the numbers of rows and columns do not, what is remembered does.
    """
    tensors = [hidden, *(rotation or ())]
    changing = [] if exact else [(tensor, range(tensor.ndim - 1)) for tensor in tensors]
    if mask is not None:
        changing.append((mask, range(mask.ndim - 1 if exact else 0, mask.ndim)))
    if keys is not None and values is not None and at is not None:
        changing += [(keys, range(2, 3)), (values, range(2, 3))]
        changing += [] if exact else [(tensor, range(1)) for tensor in (keys, values, at)]
    for tensor, dims in changing:
        for dim in dims:
            if tensor.shape[dim] > 1:
                torch._dynamo.maybe_mark_dynamic(tensor, dim)


def _runner(layer: nn.Module, product: Product | None) -> Callable[..., Tensor]:
    """A layer as a function of its parameters and of all that `run_layer` hands it."""
    layer = _hollow(layer)

    def run(
        tensors: dict[str, Tensor],
        hidden: Tensor,
        rotation: Rotation | None,
        mask: Tensor | None,
        keys: Tensor,
        values: Tensor,
        at: Tensor,
    ) -> Tensor:
        arguments: dict[str, Any] = {} if rotation is None else {"position_embeddings": rotation}
        arguments |= {
            "attention_mask": mask,
            "past_key_values": _Columns(keys, values, at),
            "use_cache": True,
        }
        with _Products(product) if product else nullcontext():
            out: Tensor | tuple[Tensor, ...] = functional_call(layer, tensors, (hidden,), arguments)
        return out[0] if isinstance(out, tuple) else out

    return run


def _filler(layer: nn.Module, product: Product | None) -> Callable[..., tuple[Tensor, Tensor]]:
    """A layer's keys and values as a function of its parameters and what it is given.

    Nobody asks for what the layer makes of them, so the compiler leaves all of that away.
    """
    layer = _hollow(layer)

    def fill(
        tensors: dict[str, Tensor], hidden: Tensor, rotation: Rotation | None
    ) -> tuple[Tensor, Tensor]:
        arguments: dict[str, Any] = {} if rotation is None else {"position_embeddings": rotation}
        caught = _Caught()
        arguments |= {"attention_mask": None, "past_key_values": caught, "use_cache": True}
        with _Products(product) if product else nullcontext():
            functional_call(layer, tensors, (hidden,), arguments)
        return caught.keys, caught.values

    return fill


def _hollow(layer: nn.Module) -> nn.Module:
    """A layer as this one, with nothing in its parameters: those are handed to it."""
    empty = {id(t): torch.empty_like(t, device="meta") for t in _tensors(layer).values()}
    parameters = {id(p) for p in layer.parameters()}
    return copy.deepcopy(
        layer, {i: nn.Parameter(t, False) if i in parameters else t for i, t in empty.items()}
    )


def _tensors(layer: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return {**dict(layer.named_parameters()), **dict(layer.named_buffers())}


def _first_alike(layers: Any, index: int) -> int:
    """The first layer that is built as this one."""
    return next(i for i in range(index + 1) if _build(layers[i]) == _build(layers[index]))


def _build(layer: nn.Module) -> list[object]:
    """What a layer is made of, but for its numbers and its place."""
    plain = (bool, int, float, str, type(None))
    tensors = [(name, t.shape, t.dtype) for name, t in _tensors(layer).items()]
    settings = [
        (
            name,
            type(part),
            sorted(
                (k, v) for k, v in vars(part).items() if isinstance(v, plain) and k != "layer_idx"
            ),
        )
        for name, part in layer.named_modules()
    ]
    return [tensors, settings]
