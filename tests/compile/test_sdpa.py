"""Attention of a few queries against that of torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from eepolicy.compile.sdpa import MAX_GEMV_QUERIES_CPU, attention


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(
    rows=st.integers(1, 3),
    shared=st.integers(1, 3),
    group=st.integers(1, 3),
    vectors=st.integers(1, 4),
    columns=st.integers(4, 9),
    masked=st.sampled_from(["no", "of bool", "added"]),
    by_row=st.booleans(),
    by_head=st.booleans(),
    fixed=st.booleans(),
    scale=st.sampled_from([None, 0.3]),
)
def test_attention_equals_that_of_torch(
    rows, shared, group, vectors, columns, masked, by_row, by_head, fixed, scale
):
    query = numbers(rows, shared * group, vectors, 5)
    key, value = (
        numbers(rows, shared, columns, 5, seed=1),
        numbers(rows, shared, columns, 3, seed=2),
    )
    of = rows if by_row else 1, shared * group if by_head else 1
    mask = numbers(*of, vectors, columns, seed=3)
    if masked == "of bool":
        mask = (mask > 0) | (torch.arange(columns) == 0)  # torch gives nan if all are masked
    mask = None if masked == "no" else mask
    ours = attention(query, key, value, mask, scale, fixed)
    repeated = (t.repeat_interleave(group, 1) for t in (key, value))
    right = F.scaled_dot_product_attention(query, *repeated, attn_mask=mask, scale=scale)
    torch.testing.assert_close(ours, right, rtol=1e-10, atol=1e-12)


def test_attention_beyond_the_gemv_query_limit_equals_that_of_torch():
    query, key, value = (
        numbers(1, MAX_GEMV_QUERIES_CPU, 3, 4),
        numbers(1, 2, 6, 4, seed=1),
        numbers(1, 2, 6, 4),
    )
    right = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    torch.testing.assert_close(attention(query, key, value), right, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_are_taken_in_float32(dtype):
    """Thousands of columns of ones: their weights sum to one; a sum in half precision stalls."""
    query, key = torch.zeros(1, 1, 1, 4, dtype=dtype), torch.zeros(1, 1, 5000, 4, dtype=dtype)
    met = attention(query, key, torch.ones_like(key))
    assert met.dtype == dtype
    assert met.tolist() == torch.ones(1, 1, 1, 4).tolist()
