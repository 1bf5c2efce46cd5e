"""The kernel cache and the errors of the compiler."""

from __future__ import annotations

import shutil

import pytest
import torch

from eepolicy.compile.kernel_cache import KernelCache

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"),
    # the compiler's warnings about its own parts
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def test_a_compile_error_is_not_taken_for_the_recompile_limit(monkeypatch):
    """The compiler's command line names precompiled headers, which contains "recompile"."""

    def fails(graph, examples):
        raise RuntimeError("g++ kernel.cpp -D TORCH_INDUCTOR_PRECOMPILE_HEADERS: error")

    def double(x):
        return x * 2

    cache = KernelCache()
    monkeypatch.setattr(cache, "_backend", fails)
    with pytest.raises(Exception, match="PRECOMPILE_HEADERS"):
        cache.run("key", "kind", lambda: double, (torch.ones(3),), lambda: [])


@torch._dynamo.config.patch(recompile_limit=1)
def test_past_the_recompile_limit_there_is_no_kernel():
    """The first shape has its kernel; the second would be one more than the limit."""

    def double(x):
        return x * 2

    cache = KernelCache()
    outs = [
        cache.run("key", x.dtype, lambda: double, (x,), lambda: [])
        for x in (torch.ones(3), torch.ones(3, dtype=torch.float64))
    ]
    assert outs[0] is not None
    assert outs[0][0].tolist() == [2.0, 2.0, 2.0]
    assert outs[1] is None
