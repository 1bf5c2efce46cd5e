"""Products with a wide weight by oneDNN, which torch contains but does not call for them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from eepolicy.compile.gemv import Products
from eepolicy.heads.weights import PLAIN_TENSORS, obstacle

#: rows of a weight, (out,), from which oneDNN is faster: output embeddings, not the projections of
#: a layer
MIN_ONEDNN_OUT_FEATURES = 8192


def wide_products(head: object = None) -> AbstractContextManager[object]:
    """Compute products with output embeddings on a CPU by oneDNN, where torch was built with it.

    Args:
        head: output embedding; one with hooks, or compiled by its user, runs unchanged.

    torch calls MKL, which lays out the whole weight anew at each call.  Measured on an AMD EPYC,
    128 rows of 576 with a weight of 49,152 rows: 0.76 of the time of MKL on one thread, 0.66 on
    two.  The products of layers take the same time with both.
    """
    available = torch.backends.mkldnn.is_available() and hasattr(
        torch.ops.mkldnn, "_linear_pointwise"
    )
    return Products(_product) if available and obstacle(head) is None else nullcontext()


def _product(vectors: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., width) with (out, width): (..., out)."""
    supported = (
        type(weight) in PLAIN_TENSORS
        and len(weight) >= MIN_ONEDNN_OUT_FEATURES
        and vectors.numel()
        and {vectors.device.type, weight.device.type} == {"cpu"}
        and vectors.dtype == weight.dtype == torch.float32
        and not torch.is_grad_enabled()
    )
    if not supported:
        return F.linear(vectors, weight, bias)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(vectors, weight, bias, "none", [], "")
    return product
