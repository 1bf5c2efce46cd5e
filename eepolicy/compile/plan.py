"""Kernel calls of a compiled function as a list that native code runs for many layers.

The compiler turns a function into kernels and into Python code that allocates memory and calls
them.  For one position this code takes half as long as the kernels.  `record` runs it once with
symbols instead of sizes.  The result is a list of calls, which serves all layers of the same
structure and all sizes.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import sympy  # type: ignore[import-untyped]  # it has no type stubs
import torch
from torch import Tensor

from eepolicy.compile.memory import Memory, is_contiguous, reinterpret
from eepolicy.compile.native import MAX_ARGUMENTS, MAX_ROWS, Integers, NativeLibrary
from eepolicy.errors import translated

#: index of a tensor among the arguments, and the number to read from it; None for the tensor itself
Source: TypeAlias = "tuple[int, Callable[[Tensor], Any] | None]"

#: alignment of a buffer, in bytes
LINE = 64
#: kinds of arguments, see `native.cpp`
NUMBER, SCRATCH = -2, -1


class CannotRecord(Exception):
    """The code around the kernels does something that a plan cannot do."""


@dataclass(frozen=True)
class KernelPlan:
    """Kernel calls of a compiled function.

    Attributes:
        library: runs the calls.
        sources: index among the arguments of the function of each entry of the table.
        calls: (length,), see `native.cpp`; numbers that depend on sizes are zero.
        variable_words: indices of these numbers in `calls`.
        readers: reads each symbol from the arguments.
        numbers: function from the symbols to the numbers at `variable_words`, the bytes of scratch
            memory, the most rows of a product, and the shape of the output.
        dtype: type of the output; None for a function without one.
        columns: entries of the table, and arguments, of ranges of arguments.
    """

    library: NativeLibrary
    sources: list[int]
    calls: Integers
    variable_words: Integers
    readers: list[Source]
    numbers: Callable[..., Sequence[int]]
    dtype: torch.dtype | None
    columns: dict[tuple[int, int], tuple[Integers, ...]] = field(default_factory=dict)

    def line(self, args: Sequence[Tensor]) -> list[int]:
        """Addresses of the arguments for one line of the table; the output is 0."""
        return [*(args[source].data_ptr() for source in self.sources), 0]

    def table(self, layers: int) -> Integers:
        """A table without addresses: (layers, entries)."""
        return np.empty((layers, len(self.sources) + 1), np.int64)

    def set_all(self, table: Integers, args: Sequence[Tensor], which: range) -> None:
        """Set some arguments that are the same for all lines."""
        for entry, source in enumerate(self.sources):
            if source in which:
                table[:, entry] = args[source].data_ptr()

    def set_each(self, table: Integers, first: int, addresses: Integers) -> None:
        """Set consecutive arguments that differ between the lines.

        Args:
            table: (layers, entries).
            first: first of the arguments.
            addresses: (layers, arguments).
        """
        stop = first + addresses.shape[1]
        key = first, stop
        if key not in self.columns:
            own = [(e, s - first) for e, s in enumerate(self.sources) if first <= s < stop]
            self.columns[key] = tuple(np.array(own, np.int64).reshape(-1, 2).T)
        entries, sources = self.columns[key]
        table[:, entries] = addresses[:, sources]

    def run(
        self, args: Sequence[Tensor], table: Integers, chained: int | None = None
    ) -> tuple[Tensor, ...] | None:
        """Run the calls for each line of a table.

        Args:
            args: arguments of the function for the first line.
            table: (layers, entries), addresses of the arguments; the last entry is set here.
            chained: index of the argument that is the output of the line before.

        Returns:
            The output of the last line, if the function has one; None where a product has more rows
            than pays.
        """
        numbers = self.numbers(*input_values(self.readers, args))
        count = len(self.variable_words)
        scratch, rows, *shape = numbers[count:]
        if rows > MAX_ROWS:
            return None
        calls = self.calls.copy()
        calls[self.variable_words] = numbers[:count]
        if self.dtype is None:
            memory = torch.empty(scratch, dtype=torch.uint8)
            self.library.run(calls, table, memory.data_ptr())
            return ()
        out = torch.empty(shape, dtype=self.dtype)
        size = -(-out.nbytes // LINE) * LINE
        memory = torch.empty(scratch + 2 * size, dtype=torch.uint8)
        start = memory.data_ptr()
        if len(table) > 1:  # outputs alternate: a layer reads one and writes the other
            assert chained is not None
            table[::2, -1], table[1::2, -1] = start + scratch, start + scratch + size
            table[1:, self.sources.index(chained)] = table[:-1, -1]
        table[-1, -1] = out.data_ptr()
        self.library.run(calls, table, start)
        return (out,)


def record(
    library: NativeLibrary,
    kernel: Callable[..., Any],
    sources: Sequence[Source],
    args: Sequence[Tensor],
    symbols: Sequence[Any],
) -> KernelPlan:
    """Record the calls of a kernel of the compiler, which is called once.

    Args:
        library: runs the calls.
        kernel: kernel from the backend of the compiler.
        sources: source of each of its inputs.
        args: arguments of the function.
        symbols: symbolic values of the inputs: a kernel serves one value of a size that is plain.

    Raises:
        CannotRecord: the code around the kernels does something else than call them.
    """
    code, inputs = _code_and_inputs(kernel, input_values(sources, args))
    readers = [reader for reader in sources if reader[1] is not None]
    index_of = {id(tensor): index for index, tensor in enumerate(args)}
    recorder = _Recorder(library)
    symbol_of = {
        index: symbol for (index, read), symbol in zip(sources, symbols, strict=True) if not read
    }
    symbolic: list[Any] = []
    for value in inputs:
        if isinstance(value, Tensor):
            if id(value) not in index_of:
                raise CannotRecord("an input of the kernel is not an argument")
            index = index_of[id(value)]
            symbolic.append(recorder.input(index, value, symbol_of[index]))
        else:
            index, number = readers.pop(0)
            assert number is not None
            symbolic.append(recorder.symbol(index, number))
    with translated(lambda error: CannotRecord(str(error))):
        plan = recorder.plan(recorder.trace(code, symbolic))
    return plan


def input_values(sources: Sequence[Source], args: Sequence[Tensor]) -> list[Any]:
    """Inputs of a kernel: tensors, and numbers read from them."""
    return [args[index] if number is None else number(args[index]) for index, number in sources]


def _code_and_inputs(kernel: Callable[..., Any], inputs: list[Any]) -> tuple[Any, list[Any]]:
    """The Python code around the kernels, and what it is called with.

    Raises:
        CannotRecord: there is no such code.
    """
    graph = _compiled_graph(kernel)
    call = getattr(graph, "current_callable", None)
    if not isinstance(call, MethodType):
        raise CannotRecord("the code around the kernels is not known")
    inputs_seen: list[Any] = []

    def spy(values: list[Any]) -> Any:
        inputs_seen.extend(values)
        return call(values)

    graph.current_callable = spy
    try:
        kernel(*inputs)
    finally:
        graph.current_callable = call
    return call.__func__, inputs_seen


def _compiled_graph(kernel: Any) -> Any:
    """The graph that a function of the compiler calls, in the functions that it encloses."""
    waiting, seen = [kernel], set()
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if type(part).__name__ == "CompiledFxGraph":
            return part
        if isinstance(part, FunctionType):
            inner = [cell.cell_contents for cell in part.__closure__ or ()]
        else:
            inner = [*getattr(part, "__dict__", {}).values()]
        waiting += [v for v in inner if callable(v) and not isinstance(v, type)]
    return None


class _Recorder:
    """Stands in for the functions that the code around the kernels calls.

    Args:
        library: runs the calls.
    """

    def __init__(self, library: NativeLibrary) -> None:
        self.library = library
        self.sources: list[int] = []
        self.readers: dict[sympy.Symbol, Source] = {}
        self.buffers: list[Any] = []  # bytes of each
        self.counts: list[Any] = []  # numbers in each
        self.calls: list[tuple[int, list[Any]]] = []
        self.rows: list[Any] = []  # of each product

    def symbol(self, index: int, number: Callable[[Tensor], Any]) -> sympy.Symbol:
        """A symbol for a number that is read from an argument."""
        symbol = sympy.Symbol(f"n{len(self.readers)}", integer=True, positive=True)
        self.readers[symbol] = (index, number)
        return symbol

    def input(self, index: int, tensor: Tensor, symbolic: Tensor) -> Memory:
        """An argument."""
        self.sources.append(index)
        sizes, strides = (
            tuple(
                number if isinstance(number, int) else self.symbol(index, partial(read, dim=dim))
                for dim, number in enumerate(read(symbolic))
            )
            for read in (Tensor.size, Tensor.stride)
        )
        return Memory(len(self.sources) - 1, sizes, strides, tensor.dtype)

    def trace(self, code: FunctionType, inputs: list[Any]) -> Sequence[Memory]:
        """Run the code with symbols; returns its outputs."""
        names: dict[str, Any] = {
            name: partial(self._kernel, _address(value))
            for name, value in code.__globals__.items()
            if isinstance(value, BuiltinFunctionType) and value.__name__ == "kernel"
        }
        names |= {
            "torch": torch,
            "empty_strided_cpu": self._empty,
            "reinterpret_tensor": reinterpret,
            "extern_kernels": SimpleNamespace(
                mm=self._mm, addmm=self._addmm, _weight_int8pack_mm=self._int8_mm
            ),
        }
        run = FunctionType(code.__code__, names, closure=code.__closure__)
        out: Sequence[Memory] = run(None, inputs)
        return out

    def _kernel(self, address: int, *arguments: Any) -> None:
        self.calls.append((address, [*arguments]))

    def _empty(self, size: Any, strides: Any, dtype: torch.dtype) -> Memory:
        last = sum((n - 1) * stride for n, stride in zip(size, strides, strict=True))
        self.counts.append(sympy.sympify(1 + last))
        lines = sympy.floor((self.counts[-1] * dtype.itemsize + LINE - 1) / LINE)
        self.buffers.append(LINE * lines)
        return Memory(-len(self.buffers), tuple(size), tuple(strides), dtype)

    def _mm(self, x: Memory, weight: Memory, out: Memory) -> None:
        self._addmm(0, x, weight, out=out)

    def _addmm(
        self, bias: Any, x: Memory, weight: Memory, *, alpha: int = 1, beta: int = 1, out: Memory
    ) -> None:
        (m, k), n = x.sizes, weight.sizes[1]
        plain = weight.strides == (1, k) and all(
            matrix.strides[1] == 1 and (m == 1 or matrix.strides[0] == width)
            for matrix, width in ((x, k), (out, n))
        )
        product = self.library.products.get(x.dtype)
        plain = plain and x.dtype == weight.dtype == out.dtype
        if not plain or (alpha, beta) != (1, 1) or product is None:
            raise CannotRecord(
                f"a product of other matrices {x} {weight} {out} {bias} {alpha} {beta}"
            )
        if isinstance(bias, Memory) and (
            [*bias.strides] not in ([1], [0, 1]) or bias.dtype != x.dtype
        ):
            raise CannotRecord("a sum of other matrices")
        self.rows.append(m)
        self.calls.append((product, [x, weight, bias, out, m, n, k]))

    def _int8_mm(self, x: Memory, weight: Memory, scale: Memory) -> Memory:
        (m, k), n = x.sizes, weight.sizes[0]
        out = self._empty((m, n), (n, 1), x.dtype)
        plain = all(map(is_contiguous, (x, weight, scale))) and weight.dtype == torch.int8
        if not plain or {x.dtype, scale.dtype} != {torch.float32}:
            raise CannotRecord(f"an int8 product of other matrices {x} {weight} {scale}")
        self.rows.append(m)
        self.calls.append((self.library.int8_product, [x, weight, scale, out, m, n, k]))
        return out

    def plan(self, outputs: Sequence[Memory]) -> KernelPlan:
        """The recorded calls."""
        out = outputs[0] if outputs else None
        if len(outputs) > 1 or (out and not (out.entry < 0 and out.offset == 0)):
            raise CannotRecord("outputs that are not one buffer")
        if out and not is_contiguous(out):
            raise CannotRecord("an output that is not contiguous")
        # kernels write the whole buffer, such as rows that were padded
        if out and sympy.expand(sympy.prod(out.sizes) - self.counts[-1 - out.entry]) != 0:
            raise CannotRecord("an output that is a part of a buffer")
        starts: list[Any] = [sympy.Integer(0)]
        for size in self.buffers:
            starts.append(starts[-1] + size)
        words: list[Any] = []
        for address, arguments in self.calls:
            if len(arguments) > MAX_ARGUMENTS:
                raise CannotRecord("a kernel with too many arguments")
            words += [address, len(arguments)]
            for argument in arguments:
                words += self._word(argument, starts, out)
        shape = out.sizes if out else ()
        rows = sympy.Max(0, *self.rows)
        variable = [i for i, word in enumerate(words) if getattr(word, "free_symbols", None)]
        numbers = [*(words[i] for i in variable), starts[-1], rows, *shape]
        used = [s for s in self.readers if any(s in sympy.sympify(n).free_symbols for n in numbers)]
        for i in variable:
            words[i] = 0
        return KernelPlan(
            self.library,
            self.sources,
            np.array([int(word) for word in words], np.int64),
            np.array(variable, np.int64),
            [self.readers[symbol] for symbol in used],
            sympy.lambdify(used, numbers, "math"),
            out.dtype if out else None,
        )

    def _word(self, argument: Any, starts: list[Any], out: Memory | None) -> list[Any]:
        """Kind and value of an argument; see `native.cpp`."""
        if not isinstance(argument, Memory):
            if not isinstance(argument, (int, sympy.Expr)):
                raise CannotRecord("an argument that is neither memory nor an integer")
            return [NUMBER, argument]
        offset = argument.offset * argument.dtype.itemsize
        if out and argument.entry == out.entry:
            return [len(self.sources), offset]
        if argument.entry < 0:
            return [SCRATCH, starts[-1 - argument.entry] + offset]
        return [argument.entry, offset]


def _address(kernel: Any) -> int:
    """Address of a kernel."""
    library = ctypes.CDLL(sys.modules[kernel.__module__].__file__)
    address = ctypes.cast(library.kernel, ctypes.c_void_p).value
    assert address is not None
    return address
