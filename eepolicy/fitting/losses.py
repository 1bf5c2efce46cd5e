"""What a head is fitted by: losses against the last layer's distribution."""

from __future__ import annotations

import torch
from torch import Tensor

from eepolicy.errors import EepolicyError


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-sum p log q (SPAR-K, the loss of its heads).

    Its gradient is that of the KL from the last layer, sum p log(p / q), which is smaller by p's
    entropy: there is no loss of that name.

    Args:
        logits: (rows, vocabulary) of a head.
        target: (rows, vocabulary), the probabilities of the last layer.

    Returns:
        (rows,) in nats.
    """
    return logits.logsumexp(-1) - torch.einsum("rv,rv->r", target, logits)


def reverse_kl(logits: Tensor, target: Tensor) -> Tensor:
    """KL to the last layer, sum q log(q / p): what it would not say costs most; shapes alike."""
    logs = logits.log_softmax(-1)
    least = torch.finfo(target.dtype).tiny
    return (logs.exp() * (logs - target.clamp(min=least).log())).sum(-1)


def top_k_cross_entropy(logits: Tensor, target: Tensor, k: int) -> Tensor:
    """-sum p log q over the last layer's k likeliest tokens, p made to sum to one over them."""
    best = target.topk(k, -1)
    weights = best.values / best.values.sum(-1, keepdim=True)
    return logits.logsumexp(-1) - (weights * logits.gather(-1, best.indices)).sum(-1)


def loss_of(name: str, logits: Tensor, target: Tensor) -> Tensor:
    """A loss by its name: `soft`, `reverse_kl` or `top:K`; shapes as in `soft_cross_entropy`.

    Raises:
        EepolicyError: another name.
    """
    if name == "soft":
        return soft_cross_entropy(logits, target)
    if name == "reverse_kl":
        return reverse_kl(logits, target)
    kind, _, k = name.partition(":")
    if kind == "top" and k.isdecimal() and 1 <= int(k) <= target.shape[-1]:
        return top_k_cross_entropy(logits, target, int(k))
    raise EepolicyError(f"a loss is 'soft', 'reverse_kl' or 'top:K', such as top:50; got {name!r}")


def grad_of(name: str, logits: Tensor, target: Tensor) -> Tensor:
    """The gradient of a loss by its logits, row by row: (rows, vocabulary); names as in `loss_of`.

    That of `soft` is q - p: written down, it takes a third of the passes over the vocabulary that
    autograd makes through the loss.
    """
    if name == "soft":
        return logits.softmax(-1).sub_(target)
    leaf = logits.detach().requires_grad_()
    [slope] = torch.autograd.grad(loss_of(name, leaf, target).sum(), leaf)
    return slope
