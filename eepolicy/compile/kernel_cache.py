"""Kernels from `torch.compile`, called without the checks of the compiler."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from eepolicy.compile.native import native_library
from eepolicy.compile.plan import CannotRecord, KernelPlan, Source, input_values, record
from eepolicy.errors import translated
from eepolicy.logs import only_errors

#: largest difference of a plan from the kernels of the compiler, as a share of the largest number:
#: products are summed in another order.  In bfloat16 a sum may round to the next number, up to 8e-3
#: away, in each of a few operations; measured: 7e-4 (logits of SmolLM2)
PLAN_TOLERANCE = {torch.bfloat16: 3e-2}
OTHER_TOLERANCE = 1e-4
#: options of the compiler.  A product and a sum become one instruction.  An input that is used
#: several times, such as a norm, is computed once, and not again for each row of a weight.  Kernels
#: do not assert what `KernelCache` already knows of their inputs
OPTIONS = {
    "realize_reads_threshold": 0,
    "cpp.enable_floating_point_contract_flag": "fast",
    "size_asserts": False,
    "alignment_asserts": False,
}


#: logger of the compiler, which warns at its limit of kernels; `KernelCache.run` handles that
COMPILER_LOG = "torch._dynamo.convert_frame"


class CannotCompile(RuntimeError):
    """The compiler cannot compile a function; the message is that of its error."""


def cannot_compile(error: Exception) -> CannotCompile:
    """The error for one that is raised while a function is compiled, of any type."""
    return CannotCompile(str(error).strip() or repr(error))


#: errors of `KernelCache.run`.  A kernel that was compiled raises one of the others
KERNEL_ERRORS = (CannotCompile, RuntimeError, IndexError, AssertionError)


class DynamicDims(NamedTuple):
    """Dimensions of a tensor that change between calls.

    Attributes:
        tensor: the tensor.
        sizes: dimensions whose size changes.
        strides: dimensions whose stride changes.
    """

    tensor: Tensor
    sizes: Sequence[int]
    strides: Sequence[int] = ()


class KernelCall(NamedTuple):
    """Arguments of `KernelCache.run`."""

    key: Hashable
    guard: Hashable
    make: Callable[[], Callable[..., Any]]
    args: Sequence[Tensor]
    dynamic: Callable[[], Sequence[DynamicDims]]


class KernelCache:
    """Compiles functions and calls their kernels directly.

    A call through the compiler checks all inputs, which takes as long as a small layer.  Here the
    caller gives a guard, a key that is equal for inputs that the same kernel serves.  The first
    call with a guard goes through the compiler, which picks or makes a kernel; later calls go to
    the kernel directly.

    Attributes:
        num_kernels: number of kernels that were compiled so far.
    """

    def __init__(self) -> None:
        self.num_kernels = 0
        self._functions: dict[Hashable, Callable[..., Any]] = {}
        self._calls: dict[Hashable, DirectCall | None] = {}
        self._refused: set[Hashable] = set()
        #: plan of each kernel; the kernel keeps its id in use
        self._plans: dict[int, tuple[Callable[..., Any], KernelPlan | None]] = {}
        #: kernel, its inputs and their symbols, of the last call through the compiler
        self._last: tuple[Callable[..., Any], Sequence[Any], Sequence[Any]] | None = None

    def run(
        self,
        key: Hashable,
        guard: Hashable,
        make: Callable[[], Callable[..., Any]],
        args: Sequence[Tensor],
        dynamic: Callable[[], Sequence[DynamicDims]],
    ) -> tuple[Tensor, ...] | None:
        """Call a function of tensors, compiled.

        Args:
            key: key of the function.
            guard: key of the inputs, which includes `key`.  It holds all that the function may
                depend on, except the values and the dynamic dimensions of the tensors.
            make: makes the function, which returns one or several tensors.
            args: arguments of the function.
            dynamic: gives the dimensions that change between calls; one kernel serves all sizes.

        Returns:
            The outputs of the function; None where the compiler makes no more kernels for it.

        Raises:
            CannotCompile: the compiler cannot compile the function.
        """
        call = self._calls.get(guard)
        if call is not None:
            return call(args)
        if guard in self._refused:
            return None
        with translated(cannot_compile):
            return self._compile_and_call(key, guard, make, args, dynamic)

    def _compile_and_call(
        self,
        key: Hashable,
        guard: Hashable,
        make: Callable[[], Callable[..., Any]],
        args: Sequence[Tensor],
        dynamic: Callable[[], Sequence[DynamicDims]],
    ) -> tuple[Tensor, ...] | None:
        """The first call with a guard; see `run`."""
        if key not in self._functions:
            self._functions[key] = self._compiled(make())
        for tensor, sizes, _ in dynamic():
            for dim in sizes:
                if tensor.shape[dim] > 1:
                    torch._dynamo.maybe_mark_dynamic(tensor, dim)
        try:
            with only_errors(COMPILER_LOG):
                out = self._functions[key](*args)
        except torch._dynamo.exc.FailOnRecompileLimitHit:
            self._refused.add(guard)
            return None
        out = out if isinstance(out, tuple) else (out,)
        if guard not in self._calls:
            self._calls[guard] = self._direct_call(args, out, dynamic())
        self._last = None  # it would keep the arguments in memory
        return out

    def _direct_call(
        self, args: Sequence[Tensor], out: tuple[Tensor, ...], dynamic: Sequence[DynamicDims]
    ) -> DirectCall | None:
        """The last call without the compiler; None where the inputs of the kernel are not known.

        The direct call must return the same bits, and write the same bits into the arguments.
        """
        if self._last is None:
            return None
        kernel, inputs, symbols = self._last
        sources = _sources(args, inputs, symbols)
        if sources is None or not _all_dynamic(dynamic, inputs, symbols):
            return None
        call = DirectCall(kernel, sources)
        writable = [  # weights in int8 are buffers
            tensor
            for tensor in args
            if not isinstance(tensor, torch.nn.Parameter) and tensor.dtype != torch.int8
        ]
        expected = [*out, *(tensor.clone() for tensor in writable)]
        again = [*call(args), *writable]
        if len(again) != len(expected) or not all(map(torch.equal, again, expected)):
            return None
        plan = self._plan(call, args, symbols)
        if plan is not None:
            again = [*plan(args), *writable]
            if all(map(_close, again, expected)):
                return plan
            for tensor, stored in zip(writable, expected[len(out) :], strict=True):
                tensor.copy_(stored)
        return call

    def _plan(
        self, call: DirectCall, args: Sequence[Tensor], symbols: Sequence[Any]
    ) -> DirectCall | None:
        """A direct call without Python between the kernels; None where that is not possible."""
        if id(call.kernel) not in self._plans:
            plan, library = None, None
            if all(tensor.device.type == "cpu" for tensor in args):
                library = native_library()
            if library is not None:
                with suppress(CannotRecord):
                    plan = record(library, call.kernel, call.sources, args, symbols)
            self._plans[id(call.kernel)] = call.kernel, plan
        plan = self._plans[id(call.kernel)][1]
        return None if plan is None else DirectCall(call.kernel, call.sources, plan)

    def plan(self, guard: Hashable) -> KernelPlan | None:
        """The plan for inputs with this guard; None before their first call, or without one."""
        call = self._calls.get(guard)
        return None if call is None else call.plan

    def _compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that is compiled when it is called."""
        own_code = FunctionType(
            # dynamo makes at most eight kernels for a code object: each function has its own
            function.__code__.replace(
                co_name=f"{function.__name__}_{id(self)}_{len(self._functions)}"
            ),
            function.__globals__,
            argdefs=function.__defaults__,
            closure=function.__closure__,
        )
        return torch.compile(own_code, fullgraph=True, backend=self._backend)

    def _backend(self, graph: Any, examples: Any) -> Any:
        from torch._dynamo.eval_frame import innermost_fn
        from torch._inductor.compile_fx import compile_fx

        self.num_kernels += 1
        placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
        symbols = [node.meta.get("example_value") for node in placeholders]
        compiled: Any = compile_fx(graph, examples, config_patches=OPTIONS)
        # the wrapper keeps the compiler from tracing the kernel, and nothing is traced around it
        kernel: Any = innermost_fn(compiled)

        def recorded(*inputs: Any) -> Any:
            self._last = kernel, inputs, symbols
            return kernel(*inputs)

        return recorded


class DirectCall:
    """A kernel, and the sources of its inputs.

    Args:
        kernel: kernel from the backend of the compiler.
        sources: source of each input.  A number for which the kernel was made has a source that
            ignores its tensor.
        plan: calls the same without Python between the calls; None to call the kernel.
    """

    def __init__(
        self,
        kernel: Callable[..., Any],
        sources: Sequence[Source],
        plan: KernelPlan | None = None,
    ) -> None:
        self.kernel, self.sources, self.plan = kernel, sources, plan

    def __call__(self, args: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if self.plan is not None:
            out = self.plan.run(args, np.array([self.plan.line(args)], np.int64))
            if out is not None:
                return out
        return self.run_kernel(args)

    def run_kernel(self, args: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Call the kernel, with Python between its parts."""
        return tuple(self.kernel(*input_values(self.sources, args)))


def _close(ours: Tensor, expected: Tensor) -> bool:
    """Whether a plan gives the numbers of the kernels that it replaces."""
    if not expected.is_floating_point():
        return torch.equal(ours, expected)
    largest = expected.abs().amax().item() if expected.numel() else 0.0
    tolerance = PLAN_TOLERANCE.get(expected.dtype, OTHER_TOLERANCE) * largest
    return bool(((ours - expected).abs() <= tolerance).all())


def _sources(
    args: Sequence[Tensor], inputs: Sequence[Any], symbols: Sequence[Any]
) -> list[Source] | None:
    """Sources of the inputs of a kernel: tensors by identity, numbers by their symbols.

    Args:
        args: arguments of the function.
        inputs: inputs of the kernel in that call.
        symbols: symbolic values of the inputs, in the same order.
    """
    index_of = {id(tensor): index for index, tensor in enumerate(args)}
    sources: list[Source] = []
    for value, symbol in zip(inputs, symbols, strict=True):
        if isinstance(value, Tensor):
            if id(value) not in index_of:
                return None
            sources.append((index_of[id(value)], None))
            continue
        if _is_constant(symbol):  # the kernel serves this size alone
            sources.append((0, partial(_constant, value=value)))
            continue
        number = _number(symbol, inputs, symbols)
        if number is None or id(number[0]) not in index_of:
            return None
        sources.append((index_of[id(number[0])], number[1]))
    return sources


def _number(
    symbol: Any, inputs: Sequence[Any], symbols: Sequence[Any]
) -> tuple[Tensor, Callable[[Tensor], Any]] | None:
    """The tensor whose size, stride or storage offset a symbol stands for, and how to read it."""
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


def _all_dynamic(
    dynamic: Sequence[DynamicDims], inputs: Sequence[Any], symbols: Sequence[Any]
) -> bool:
    """Whether the kernel serves all sizes and strides of the dynamic dimensions."""
    symbolic_of = {id(value): symbol for value, symbol in zip(inputs, symbols, strict=True)}
    numbers = [
        number
        for tensor, sizes, strides in dynamic
        if (symbolic := symbolic_of.get(id(tensor))) is not None
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
