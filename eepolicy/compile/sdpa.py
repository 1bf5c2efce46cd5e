"""Attention of a few vectors, written so that a compiler joins it with what is around."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: vectors that meet one head of keys, up to which each has a sum of its own
MOST = 16


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    fixed: bool = True,
) -> Tensor:
    """What `F.scaled_dot_product_attention` gives.

    Torch's kernel on a CPU takes products of matrices, which a few vectors do not fill.

    Args:
        query: (rows, heads, vectors, d).
        key: (rows, heads or a divisor of them, columns, d); heads of queries that follow each other
            share one.
        value: (rows, as many, columns, d of its own).
        mask: (rows or 1, heads or 1, vectors, columns), of bool or to be added.
        scale: of the products; one over the root of d where none is given.
        fixed: the number of vectors is always the same.

    Returns:
        (rows, heads, vectors, d of the values).
    """
    if query.device.type != "cpu":
        return _grouped(query, key, value, mask, scale)
    rows, heads, count, wide = query.shape
    shared = key.shape[1]
    exact = torch.promote_types(query.dtype, torch.float32)
    shape = (rows, shared, heads // shared, count, -1)
    apart = fixed and heads // shared * count <= MOST
    if not apart:
        key, value = key[:, :, None], value[:, :, None]  # for all vectors of a head
    # one sum for each vector: the compiler takes them in one loop, which reads the keys once
    sums = [(q[..., None, :] * key).sum(-1, dtype=exact) for q in _each(query.view(shape), apart)]
    scores = torch.stack(sums, 2).view(shape) * (wide**-0.5 if scale is None else scale)
    if mask is not None:
        mask = mask.expand(rows, heads, count, -1).unflatten(1, (shared, -1))
        masked = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, -torch.inf) if masked else scores + mask
    # divided at the end, once a vector: a loop over the columns would divide again in each
    shares = (scores - scores.amax(-1, keepdim=True)).exp()
    sums = [(s[..., None] * value).sum(-2, dtype=exact) for s in _each(shares, apart)]
    met = torch.stack(sums, 2).view(shape) / shares.sum(-1, keepdim=True)
    return met.flatten(1, 2).to(query.dtype)


def _grouped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor:
    """The same as products of matrices: all vectors that meet one head of keys are one matrix."""
    rows, heads, count, wide = query.shape
    shared = key.shape[1]
    scores = query.reshape(rows, shared, -1, wide) @ key.transpose(-1, -2)
    scores = scores.to(torch.promote_types(query.dtype, torch.float32))
    scores = scores * (wide**-0.5 if scale is None else scale)
    if mask is not None:
        scores = scores.view(rows, shared, heads // shared, count, -1)
        mask = mask.expand(rows, heads, count, -1).unflatten(1, (shared, -1))
        masked = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, -torch.inf) if masked else scores + mask
        scores = scores.flatten(2, 3)
    met = scores.softmax(-1).to(value.dtype) @ value
    return met.view(rows, heads, count, -1)


def _each(vectors: Tensor, apart: bool) -> Sequence[Tensor]:
    """(rows, shared, group, vectors, ...): (rows, shared, ...) each, or of all vectors of a head.

    By index, not by `unbind`: what is used more than once, the compiler computes once.
    """
    heads = [vectors[:, :, g] for g in range(vectors.shape[2])]
    return [h[:, :, i] for h in heads for i in range(h.shape[2])] if apart else heads
