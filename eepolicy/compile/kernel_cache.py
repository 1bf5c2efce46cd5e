"""Functions that `torch.compile` makes kernels of, called past its checks once they were made."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor

#: of the compiler: products and sums become one instruction; what is used more than once, a norm
#: say, is computed once, and not again for each row of a weight that it meets; and what `KernelCache`
#: knows of its inputs is not asserted again at each call
OPTIONS = {
    "realize_reads_threshold": 0,
    "cpp.enable_floating_point_contract_flag": "fast",
    "size_asserts": False,
    "alignment_asserts": False,
}


class DynamicDims(NamedTuple):
    """What of a tensor differs from call to call, by dimension."""

    tensor: Tensor
    sizes: Sequence[int]
    strides: Sequence[int] = ()


class KernelCache:
    """Makes kernels and calls them.

    The compiler's own call looks all inputs over each time and costs as much as a small layer.
    Here the caller says which inputs are alike; the first of a kind goes through the compiler,
    which picks or makes a kernel, and those after it go to that kernel itself.

    Attributes:
        made: kernels so far.
    """

    def __init__(self) -> None:
        self.made = 0
        self._functions: dict[Hashable, Callable[..., Any]] = {}
        self._calls: dict[Hashable, _Call | None] = {}
        self._refused: set[Hashable] = set()
        self._last: tuple[Callable[..., Any], Sequence[Any], Sequence[Any]] | None = None

    def run(
        self,
        key: Hashable,
        kind: Hashable,
        make: Callable[[], Callable[..., Any]],
        given: Sequence[Tensor],
        changing: Callable[[], Sequence[DynamicDims]],
    ) -> tuple[Tensor, ...] | None:
        """Run a function of tensors that gives one or several tensors.

        Args:
            key: of the function.
            kind: of the inputs, the function's key included: whatever the function may depend on
                beside the numbers, but for the sizes and strides that change.
            make: makes the function.
            given: to it.
            changing: says which sizes and strides change from call to call, so that one kernel is
                made for all of them.

        Returns:
            What the function gives; None where the compiler makes no more kernels of it.

        Raises:
            Exception: whatever the compiler raises where it cannot compile the function.
        """
        call = self._calls.get(kind)
        if call is not None:
            return call(given)
        if kind in self._refused:
            return None
        if key not in self._functions:
            self._functions[key] = self._compiled(make())
        for tensor, sizes, _ in changing():
            for dim in sizes:
                if tensor.shape[dim] > 1:
                    torch._dynamo.maybe_mark_dynamic(tensor, dim)
        try:
            with _quiet():
                out = self._functions[key](*given)
        except torch._dynamo.exc.FailOnRecompileLimitHit:
            self._refused.add(kind)
            return None
        out = out if isinstance(out, tuple) else (out,)
        if kind not in self._calls:
            self._calls[kind] = self._direct(given, out, changing())
        self._last = None  # it holds on to what was given
        return out

    def _direct(
        self,
        given: Sequence[Tensor],
        out: tuple[Tensor, ...],
        changing: Sequence[DynamicDims],
    ) -> _Call | None:
        """The call that was just made, without the compiler; None where it is not understood.

        It must give the same once more, bit for bit, and write the same in the same places.
        """
        if self._last is None:
            return None
        kernel, inputs, symbols = self._last
        order = _order(given, inputs, symbols)
        if order is None or not _may_change(changing, inputs, symbols):
            return None
        call = _Call(kernel, order)
        written = [tensor for tensor in given if not isinstance(tensor, torch.nn.Parameter)]
        before = [tensor.clone() for tensor in written]
        again = call(given)
        same = len(again) == len(out) and all(map(torch.equal, again, out))
        return call if same and all(map(torch.equal, written, before)) else None

    def _compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function, compiled when it is called."""
        own = FunctionType(
            # dynamo makes eight kernels of a code object at most: each has its own
            function.__code__.replace(
                co_name=f"{function.__name__}_{id(self)}_{len(self._functions)}"
            ),
            function.__globals__,
            argdefs=function.__defaults__,
            closure=function.__closure__,
        )
        return torch.compile(own, fullgraph=True, backend=self._backend)

    def _backend(self, graph: Any, examples: Any) -> Any:
        from torch._dynamo.eval_frame import innermost_fn
        from torch._inductor.compile_fx import compile_fx

        self.made += 1
        places = [node for node in graph.graph.nodes if node.op == "placeholder"]
        symbols = [node.meta.get("example_value") for node in places]
        # without what keeps the compiler from looking into the kernel: nothing is compiled round it
        made: Any = compile_fx(graph, examples, config_patches=OPTIONS)
        kernel: Any = innermost_fn(made)

        def noted(*inputs: Any) -> Any:
            self._last = kernel, inputs, symbols
            return kernel(*inputs)

        return noted


class _Call:
    """A kernel, and where each of its inputs comes from.

    Args:
        kernel: as the compiler's backend made it.
        order: of each input the place of a tensor, and how to get a number out of it, if it is one;
            a number that the kernel was made for comes out of any.
    """

    def __init__(self, kernel: Callable[..., Any], order: Sequence[tuple[int, Any]]) -> None:
        self.kernel, self.order = kernel, order

    def __call__(self, given: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(
            self.kernel(
                *[given[at] if number is None else number(given[at]) for at, number in self.order]
            )
        )


def _order(
    given: Sequence[Tensor], inputs: Sequence[Any], symbols: Sequence[Any]
) -> list[tuple[int, Any]] | None:
    """Where a kernel's inputs come from, by identity, and sizes by the symbols that stand for them.

    Args:
        given: to the function.
        inputs: that the kernel got for them.
        symbols: that it was made for, in the same order.
    """
    at = {id(tensor): place for place, tensor in enumerate(given)}
    order: list[tuple[int, Any]] = []
    for found, symbol in zip(inputs, symbols, strict=True):
        if isinstance(found, Tensor):
            if id(found) not in at:
                return None
            order.append((at[id(found)], None))
            continue
        if _is_constant(symbol):  # the kernel was made for this size alone
            order.append((0, partial(_constant, value=found)))
            continue
        number = _number(symbol, inputs, symbols)
        if number is None or id(number[0]) not in at:
            return None
        order.append((at[id(number[0])], number[1]))
    return order


def _number(
    symbol: Any, inputs: Sequence[Any], symbols: Sequence[Any]
) -> tuple[Tensor, Callable[[Tensor], Any]] | None:
    """A tensor, and which of its sizes or strides, or its place in memory, a symbol stands for."""
    if not isinstance(symbol, torch.SymInt):
        return None
    for tensor, symbolic in zip(inputs, symbols, strict=True):
        if not isinstance(tensor, Tensor) or not isinstance(symbolic, Tensor):
            continue
        for dim in range(tensor.ndim):
            if _is(symbolic.shape[dim], symbol):
                return tensor, partial(Tensor.size, dim=dim)
            if _is(symbolic.stride(dim), symbol):
                return tensor, partial(Tensor.stride, dim=dim)
        if _is(symbolic.storage_offset(), symbol):
            return tensor, Tensor.storage_offset
    return None


def _may_change(
    changing: Sequence[DynamicDims],
    inputs: Sequence[Any],
    symbols: Sequence[Any],
) -> bool:
    """Whether the kernel was made for any number where one changes from call to call."""
    of = {id(found): symbol for found, symbol in zip(inputs, symbols, strict=True)}
    numbers = [
        number
        for tensor, sizes, strides in changing
        if (symbolic := of.get(id(tensor))) is not None
        for number in (
            *(symbolic.shape[dim] for dim in sizes if tensor.shape[dim] > 1),
            *(symbolic.stride(dim) for dim in strides if tensor.shape[dim] > 1),
        )
    ]
    return not any(map(_is_constant, numbers))


def _is_constant(symbol: Any) -> bool:
    return isinstance(symbol, int) or (
        isinstance(symbol, torch.SymInt) and bool(symbol.node.expr.is_number)
    )


def _constant(tensor: Tensor, value: int) -> int:
    return value


def _is(number: Any, symbol: torch.SymInt) -> bool:
    return isinstance(number, torch.SymInt) and bool(number.node.expr == symbol.node.expr)


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
