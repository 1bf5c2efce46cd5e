"""Linear modules with weights in int8, a quarter of the bytes of float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: largest size of an integer
LARGEST = 127
#: integers that are copied in floating point at a time: 64 MB in float32
MAX_COPIED = 2**24


class Int8Linear(nn.Module):
    """A linear module with a weight in int8, which has a scale for each row.

    The output is the product with the integers, times the scales, as in the weight-only
    quantisation of torchao.

    Args:
        linear: module in floating point, whose bias is shared.

    Attributes:
        values: (out, width) of int8.
        scale: (out,).
        bias: (out,), or None.
    """

    values: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        scale = weight.abs().amax(1) / LARGEST
        # a row of zeros has the integers 0
        values = (weight / scale.clamp(min=torch.finfo(scale.dtype).tiny)[:, None]).round()
        self.register_buffer("values", values.clamp(-LARGEST, LARGEST).to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"

    def forward(self, vectors: Tensor) -> Tensor:
        """(..., width) -> (..., out)."""
        return self.product(vectors, slice(None))

    def product(self, vectors: Tensor, rows: slice) -> Tensor:
        """The outputs of a range of rows of the weight.

        Args:
            vectors: (..., width).
            rows: range of rows, without a step.

        Returns:
            (..., rows).
        """
        values, scale = self.values[rows], self.scale[rows]
        if torch.compiler.is_compiling() and vectors.device.type == "cpu":
            # torch's own product is slow in float32; the native library takes its place
            flat = vectors.reshape(-1, vectors.shape[-1])
            product = torch._weight_int8pack_mm(flat, values, scale)
            product = product.view(*vectors.shape[:-1], len(values))
        else:
            product = _product_with_copies(vectors, values) * scale
        return product if self.bias is None else product + self.bias[rows]


def _product_with_copies(vectors: Tensor, values: Tensor) -> Tensor:
    """The product with integers, a part of which is copied in floating point at a time.

    Args:
        vectors: (..., width).
        values: (out, width) of int8.

    Returns:
        (..., out).
    """
    parts = values.split(max(1, MAX_COPIED // values.shape[1]))
    products = [F.linear(vectors, part.to(vectors.dtype)) for part in parts]
    return products[0] if len(products) == 1 else torch.cat(products, -1)


def quantize_int8(module: nn.Module, only: nn.Module | None = None) -> None:
    """Replace the linear modules in a module by `Int8Linear`, in place.

    Linear modules of a subclass stay, and so do those with weights that are quantised or offloaded,
    and so does `only` if accelerate moves its inputs.

    Args:
        module: such as a decoder layer.
        only: the linear module to replace, such as the output embedding; all by default.
    """
    for part in list(module.modules()):
        for name, child in part.named_children():
            if type(child) is not nn.Linear or (only is not None and child is not only):
                continue
            if only is not None and "_hf_hook" in vars(child):  # in a layer, its hook suffices
                continue
            weight = child.weight
            if type(weight) is nn.Parameter and weight.is_floating_point() and not weight.is_meta:
                setattr(part, name, Int8Linear(child))


def has_int8(module: nn.Module) -> bool:
    """Whether a module has weights in int8."""
    return any(isinstance(part, Int8Linear) for part in module.modules())
