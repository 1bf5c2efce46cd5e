"""Products with a wide weight by oneDNN: their values, and the cases that torch computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from eepolicy.compile.onednn import MIN_ONEDNN_OUT_FEATURES, wide_products


@pytest.mark.parametrize("rows", [(1,), (7,), (2, 5), (0,)])
@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_wide_products_equal_torchs(rows, bias):
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(24, MIN_ONEDNN_OUT_FEATURES + 3, bias=bias)
    vectors = torch.randn(*rows, 48, generator=generator)[..., ::2]
    with wide_products():
        product = head(vectors)
    expected = vectors.double() @ head.weight.double().T
    expected = expected + head.bias.double() if bias else expected
    assert product.dtype == torch.float32
    torch.testing.assert_close(product.double(), expected, rtol=1e-5, atol=1e-5)


def test_torch_computes_gradients_and_other_precisions():
    head = nn.Linear(24, MIN_ONEDNN_OUT_FEATURES)
    with wide_products():
        head(torch.ones(2, 24)).sum().backward()
        half = head.bfloat16()(torch.ones(2, 24, dtype=torch.bfloat16))
    assert head.weight.grad is not None
    assert half.dtype == torch.bfloat16
