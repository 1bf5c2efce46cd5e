"""Attention of a few queries, which a compiler fuses with the operations around it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: queries that share one head of keys, on a CPU, up to which each query has a sum of its own
MAX_GEMV_QUERIES_CPU = 16


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    fixed: bool = True,
) -> Tensor:
    """Compute what `F.scaled_dot_product_attention` computes.

    The kernel of torch on a CPU multiplies matrices in tiles, which a few queries do not fill.

    Args:
        query: (rows, heads, queries, d).
        key: (rows, KV heads, columns, d); consecutive heads of queries share one.
        value: (rows, KV heads, columns, d of the values).
        mask: (rows or 1, heads or 1, queries, columns), boolean or additive.
        scale: factor of the scores; 1 / sqrt(d) when None.
        fixed: whether the number of queries is the same in all calls of the compiled function.

    Returns:
        (rows, heads, queries, d of the values).
    """
    if query.device.type != "cpu":
        return matmul_attention(query, key, value, mask, scale)
    rows, heads, count, width = query.shape
    shared = key.shape[1]
    exact = torch.promote_types(query.dtype, torch.float32)
    shape = (rows, shared, heads // shared, count, -1)
    single = fixed and heads // shared * count <= MAX_GEMV_QUERIES_CPU
    if not single:
        key, value = key[:, :, None], value[:, :, None]  # for all queries of a head
    # one sum for each query: the compiler puts them into one loop, which reads the keys once
    sums = [(q[..., None, :] * key).sum(-1, dtype=exact) for q in _split(query.view(shape), single)]
    scores = torch.stack(sums, 2).view(shape) * (width**-0.5 if scale is None else scale)
    if mask is not None:
        mask = mask.expand(rows, heads, count, -1).unflatten(1, (shared, -1))
        boolean = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, -torch.inf) if boolean else scores + mask
    # division comes last, once for each query: a loop over the columns would divide in each
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    sums = [(w[..., None] * value).sum(-2, dtype=exact) for w in _split(weights, single)]
    out = torch.stack(sums, 2).view(shape) / weights.sum(-1, keepdim=True)
    return out.flatten(1, 2).to(query.dtype)


def matmul_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor:
    """As `attention`, with the queries that share one head of keys as one matrix."""
    rows, heads, count, width = query.shape
    shared = key.shape[1]
    scores = query.reshape(rows, shared, -1, width) @ key.transpose(-1, -2)
    scores = scores.to(torch.promote_types(query.dtype, torch.float32))
    scores = scores * (width**-0.5 if scale is None else scale)
    if mask is not None:
        scores = scores.view(rows, shared, heads // shared, count, -1)
        mask = mask.expand(rows, heads, count, -1).unflatten(1, (shared, -1))
        boolean = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, -torch.inf) if boolean else scores + mask
        scores = scores.flatten(2, 3)
    out = scores.softmax(-1).to(value.dtype) @ value
    return out.view(rows, heads, count, -1)


def _split(vectors: Tensor, single: bool) -> Sequence[Tensor]:
    """(rows, KV heads, group, queries, ...) by query, or by head of queries.

    Queries are taken by index and not by `unbind`: the compiler then computes an input that is used
    several times once.

    Args:
        vectors: (rows, KV heads, group, queries, ...).
        single: one tensor for each query, (rows, KV heads, ...); otherwise one for each head of
            queries, (rows, KV heads, queries, ...).
    """
    heads = [vectors[:, :, g] for g in range(vectors.shape[2])]
    return [h[:, :, i] for h in heads for i in range(h.shape[2])] if single else heads
