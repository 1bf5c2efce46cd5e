"""The native library: products of few rows, and kernel calls without Python between them."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eepolicy.errors import Caught

#: source of the library
SOURCE = Path(__file__).with_name("native.cpp")
#: a product and a sum become one instruction
FLAGS = ("-ffp-contract=fast",)
#: rows up to which the products of this library are used.  Measured on the weights of the pocket
#: model on one thread, as a share of the time of MKL: one row 0.47, six 0.33, sixteen 0.54, thirty-
#: two 0.73
MAX_ROWS = 32

#: types of the products
DTYPES = (torch.float32, torch.bfloat16)
#: arguments of a call, at most; as in `native.cpp`
MAX_ARGUMENTS = 64

Integers = NDArray[np.int64]


class NativeLibrary:
    """Functions of `native.cpp`.

    Args:
        library: the compiled library.

    Attributes:
        products: address of the product by the type of its matrices. It takes the pointers of
            (m, k), of a weight (n, k), of a bias (n,) or 0, and of (m, n), and then m, n and k.
        int8_product: address of the product with a weight (n, k) in int8; scales (n,) take the
            place of the bias.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        for name in ("product", "bfloat16_product", "int8_product"):
            getattr(library, f"address_of_{name}").restype = ctypes.c_int64
        self.products: dict[torch.dtype, int] = {
            torch.float32: library.address_of_product(),
            torch.bfloat16: library.address_of_bfloat16_product(),
        }
        self.int8_product: int = library.address_of_int8_product()
        self._run = library.run
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._run.argtypes = [pointer, number, pointer, number, number, number]

    def run(self, calls: Integers, table: Integers, scratch: int) -> None:
        """Run a list of kernel calls for each line of a table.

        Args:
            calls: (length,), see `native.cpp`.
            table: (layers, entries) of addresses.
            scratch: address of the scratch memory.

        Raises:
            IndexError: a kernel refuses its inputs.
        """
        failed = self._run(calls.ctypes.data, len(calls), table.ctypes.data, *table.shape, scratch)
        if failed:
            raise IndexError("a kernel refuses its inputs")


@cache
def native_library() -> NativeLibrary | None:
    """The library, which is compiled at the first call; None where that is not possible."""
    with Caught():
        from torch._inductor.codecache import CppCodeCache

        library: Any = CppCodeCache.load(SOURCE.read_text(), extra_flags=FLAGS)
        return NativeLibrary(library)
    return None  # the kernels of the compiler are called one by one


def serves(like: torch.Tensor) -> bool:
    """Whether the library computes products of such tensors."""
    return like.device.type == "cpu" and like.dtype in DTYPES and native_library() is not None
