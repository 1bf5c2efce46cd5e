"""The native library and plans, against torch."""

from __future__ import annotations

import ctypes
import shutil
import warnings

import pytest
import torch
import torch.nn.functional as F
from conftest import LAYOUT, tiny

from eepolicy import HookedModel
from eepolicy.compile.gemv import library, padded_gemv
from eepolicy.compile.kernel_cache import DynamicDims, KernelCache
from eepolicy.compile.native import MAX_ROWS, NativeLibrary, native_library

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"),
    # the compiler's warnings about its own parts
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize(("out", "width"), [(1, 16), (7, 5), (12, 33), (64, 48), (515, 40)])
def test_products_equal_those_of_torch(out, width, bias, dtype):
    """Weights whose rows and columns are no multiples of a tile, for every number of rows."""
    native = native_library()
    assert native is not None
    product = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 7)(native.products[dtype])
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(out, width, generator=generator).to(dtype)
    shift = torch.randn(out, generator=generator).to(dtype) if bias else None
    for rows in range(1, MAX_ROWS + 2):
        x = torch.randn(rows, width, generator=generator).to(dtype)
        ours = torch.full((rows, out), torch.nan, dtype=dtype)
        pointers = [x.data_ptr(), weight.data_ptr(), 0 if shift is None else shift.data_ptr()]
        product(*pointers, ours.data_ptr(), rows, out, width)
        expected = F.linear(x.double(), weight.double(), None if shift is None else shift.double())
        # sums are in float32; rounding to eight bits changes a number by up to 2**-8 of it
        rounding = 1e-5 if dtype == torch.float32 else 2**-8 + 1e-5
        torch.testing.assert_close(ours.double(), expected, rtol=rounding, atol=1e-4)


def test_numbers_are_rounded_to_bfloat16_as_in_torch():
    native = native_library()
    assert native is not None
    product = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 7)(native.products[torch.bfloat16])
    # halfway between two numbers, to the even one of them; beyond the largest; and what stays
    nan, infinite = float("nan"), float("inf")
    weight = torch.tensor([[1.0, 1.0, 3.3e38, infinite, -infinite, nan]]).bfloat16().T
    bias = torch.tensor([2**-8, 3 * 2**-8, 1e37, 0, 0, 0]).bfloat16()
    x, ours = torch.ones(1, 1, dtype=torch.bfloat16), torch.empty(1, 6, dtype=torch.bfloat16)
    product(*(t.data_ptr() for t in (x, weight, bias, ours)), 1, 6, 1)
    expected = (weight.float()[:, 0] + bias.float()).bfloat16()
    torch.testing.assert_close(ours[0], expected, rtol=0, atol=0, equal_nan=True)
    assert ours[0].tolist()[:4] == [1.0, 1 + 2**-6, infinite, infinite]


@pytest.mark.slow
def test_layers_in_bfloat16_run_in_native_calls(monkeypatch):
    """Compiled layers are compared with the stock ones at the first call."""
    model = HookedModel(tiny("qwen2").bfloat16(), layout=LAYOUT)
    rows: list[int] = []
    run = NativeLibrary.run
    monkeypatch.setattr(
        NativeLibrary,
        "run",
        lambda library, calls, *rest: rows.append(1) or run(library, calls, *rest),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # no layer differs or runs uncompiled
        out = model.generate(torch.arange(5, 12), "both=static@3", 12, compile=True)
    assert len(rows) >= 2 * len(out.tokens)  # the layers, and the readout


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
