"""Tensors while the code around compiled kernels is recorded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True)
class Memory:
    """A tensor while the code is recorded.

    Attributes:
        entry: index of the input, or -1 minus the index of the buffer.
        sizes: size of each dimension.
        strides: stride of each dimension.
        dtype: type of the numbers.
        offset: first number, from the start of the input or buffer.
    """

    entry: int
    sizes: tuple[Any, ...]
    strides: tuple[Any, ...]
    dtype: torch.dtype
    offset: Any = 0

    def size(self) -> tuple[Any, ...]:
        return self.sizes

    def stride(self) -> tuple[Any, ...]:
        return self.strides


def reinterpret(memory: Memory, size: Any, strides: Any, offset: Any) -> Memory:
    """As `reinterpret_tensor` of the compiler: other sizes and strides, from another offset."""
    return replace(memory, sizes=tuple(size), strides=tuple(strides), offset=memory.offset + offset)


def is_contiguous(memory: Memory) -> bool:
    """Whether the last dimensions follow each other without gaps."""
    expected: Any = 1
    for size, stride in zip(reversed(memory.sizes), reversed(memory.strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected = expected * size
    return True
