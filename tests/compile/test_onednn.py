"""Products with a wide weight by oneDNN: the numbers, and what is left to torch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from eepolicy.compile.onednn import WIDE, wide_products


@pytest.mark.parametrize("rows", [(1,), (7,), (2, 5), (0,)])
@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_wide_products_are_the_products(rows, bias):
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(24, WIDE + 3, bias=bias)
    vectors = torch.randn(*rows, 48, generator=generator)[..., ::2]
    with wide_products():
        found = head(vectors)
    expected = vectors.double() @ head.weight.double().T
    expected = expected + head.bias.double() if bias else expected
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_gradients_and_other_precisions_are_left_to_torch():
    head = nn.Linear(24, WIDE)
    with wide_products():
        head(torch.ones(2, 24)).sum().backward()
        half = head.bfloat16()(torch.ones(2, 24, dtype=torch.bfloat16))
    assert head.weight.grad is not None
    assert half.dtype == torch.bfloat16
