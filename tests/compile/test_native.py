"""The native library and plans, against torch."""

from __future__ import annotations

import ctypes
import shutil

import pytest
import torch
import torch.nn.functional as F

from eepolicy.compile.gemv import library, padded_gemv
from eepolicy.compile.kernel_cache import DynamicDims, KernelCache
from eepolicy.compile.native import MAX_ROWS, native_library

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"),
    # the compiler's warnings about its own parts
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize(("out", "width"), [(1, 16), (7, 5), (12, 33), (64, 48), (515, 40)])
def test_products_equal_those_of_torch(out, width, bias):
    """Weights whose rows and columns are no multiples of a tile, for every number of rows."""
    native = native_library()
    assert native is not None
    product = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 7)(native.product)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(out, width, generator=generator)
    shift = torch.randn(out, generator=generator) if bias else None
    for rows in range(1, MAX_ROWS + 2):
        x = torch.randn(rows, width, generator=generator)
        ours = torch.full((rows, out), torch.nan)
        pointers = [x.data_ptr(), weight.data_ptr(), 0 if shift is None else shift.data_ptr()]
        product(*pointers, ours.data_ptr(), rows, out, width)
        expected = F.linear(x.double(), weight.double(), None if shift is None else shift.double())
        torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-4)


def test_a_plan_serves_all_sizes_and_writes_into_its_arguments():
    def step(weight, stored, x):
        stored[1:] = library(x.relu(), weight).sum(0)
        return (library(x, weight) * 2).tanh()

    cache, key = KernelCache(), "step"
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(24, 16, generator=generator), False)
    for rows in (3, 5, 5, 11, MAX_ROWS + 8):
        x = torch.randn(rows, 16, generator=generator)
        stored, expected = torch.zeros(25), torch.zeros(25)
        guard = key, x.shape
        with torch.no_grad():
            for _ in range(2):  # the second call does not go through the compiler
                out = cache.run(
                    key, guard, lambda: step, (weight, stored, x), lambda x=x: [DynamicDims(x, [0])]
                )
            wanted = step(weight, expected, x)
        assert cache.plan(guard) is not None
        assert out is not None
        torch.testing.assert_close(out[0], wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(stored, expected, rtol=1e-5, atol=1e-5)
    assert cache.num_kernels == 1


def test_an_output_that_is_a_part_of_a_buffer_has_no_plan():
    """Kernels write eight rows, of which the function returns five: a plan would overflow."""
    cache, generator = KernelCache(), torch.Generator().manual_seed(0)
    weight, x = (torch.randn(rows, 16, generator=generator) for rows in (24, 5))
    with torch.no_grad():
        for _ in range(2):
            out = cache.run(
                "key", "guard", lambda: padded_gemv, (x, weight), lambda: [DynamicDims(x, [0])]
            )
    assert cache.plan("guard") is None
    torch.testing.assert_close(out[0], F.linear(x, weight), rtol=0, atol=1e-5)


def test_other_operations_have_no_plan_and_run():
    def sort(x):
        return x.sort(-1).values * 2

    cache, x = KernelCache(), torch.randn(3, 8)
    for _ in range(2):
        out = cache.run("sort", "sort", lambda: sort, (x,), lambda: [])
    assert cache.plan("sort") is None
    assert out is not None
    assert torch.equal(out[0], x.sort(-1).values * 2)
