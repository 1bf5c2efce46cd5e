"""Losses of exit heads against the distribution of the last layer."""

from __future__ import annotations

import torch
from torch import Tensor

from eepolicy.errors import EepolicyError


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-sum p log q, the loss of the heads of SPAR-K (arXiv 2603.09215).

    It equals the KL divergence sum p log(p / q) plus the entropy of p, and so has the same
    gradient: a separate KL loss is not needed.

    Args:
        logits: (rows, vocabulary) of a head; q is their softmax.
        target: (rows, vocabulary), p, the probabilities of the last layer.

    Returns:
        (rows,) in nats.
    """
    return logits.logsumexp(-1) - torch.einsum("rv,rv->r", target, logits)


def reverse_kl(logits: Tensor, target: Tensor) -> Tensor:
    """The sum of q log(q / p), which penalises tokens that the last layer gives a low probability.

    Args:
        logits: (rows, vocabulary) of a head; q is their softmax.
        target: (rows, vocabulary), p, the probabilities of the last layer.

    Returns:
        (rows,) in nats.
    """
    logs = logits.log_softmax(-1)
    minimum = torch.finfo(target.dtype).tiny
    return (logs.exp() * (logs - target.clamp(min=minimum).log())).sum(-1)


def top_k_cross_entropy(logits: Tensor, target: Tensor, k: int) -> Tensor:
    """-sum p log q over the k most likely tokens of the last layer, with p normalised over them.

    Args:
        logits: (rows, vocabulary) of a head; q is their softmax.
        target: (rows, vocabulary), p, the probabilities of the last layer.
        k: number of tokens.

    Returns:
        (rows,) in nats.
    """
    best = target.topk(k, -1)  # (rows, k)
    weights = best.values / best.values.sum(-1, keepdim=True)
    return logits.logsumexp(-1) - (weights * logits.gather(-1, best.indices)).sum(-1)


def check_loss(name: object) -> None:
    """Check the name of a loss.

    Raises:
        EepolicyError: no loss has the name.
    """
    if name not in ("soft", "reverse_kl") and not (isinstance(name, str) and _top_k(name)):
        raise _unknown(name)


def loss_of(name: str, logits: Tensor, target: Tensor) -> Tensor:
    """Compute the loss `soft`, `reverse_kl` or `top:K`; shapes as in `soft_cross_entropy`.

    Raises:
        EepolicyError: no loss has the name, or K is larger than the vocabulary.
    """
    if name == "soft":
        return soft_cross_entropy(logits, target)
    if name == "reverse_kl":
        return reverse_kl(logits, target)
    k = _top_k(name)
    if 1 <= k <= target.shape[-1]:
        return top_k_cross_entropy(logits, target, k)
    raise _unknown(name)


def grad_of(name: str, logits: Tensor, target: Tensor) -> Tensor:
    """Compute the gradient of a loss with respect to the logits.

    The gradient of `soft` is q - p.  Computed in closed form, it takes a third of the passes over
    the vocabulary that autograd makes.

    Args:
        name: name of the loss, see `loss_of`.
        logits: (rows, vocabulary) of a head.
        target: (rows, vocabulary), the probabilities of the last layer.

    Returns:
        (rows, vocabulary).
    """
    if name == "soft":
        return logits.softmax(-1).sub_(target)
    leaf = logits.detach().requires_grad_()
    [grad] = torch.autograd.grad(loss_of(name, leaf, target).sum(), leaf)
    return grad


def _top_k(name: str) -> int:
    """K of `top:K`; 0 for other names."""
    prefix, _, k = name.partition(":")
    return int(k) if prefix == "top" and k.isdecimal() else 0


def _unknown(name: object) -> EepolicyError:
    return EepolicyError(
        "a loss is 'soft', 'reverse_kl' or 'top:K' with K from 1 to the size of the vocabulary, "
        f"such as top:50; got {name!r}"
    )
