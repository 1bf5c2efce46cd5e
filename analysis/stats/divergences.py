"""How far apart two distributions over the vocabulary, or two sequences of sounds, are."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein
from torch import Tensor

#: name of a divergence: what it is
DIVERGENCES = {
    "kl": "KL from the full model, nats",
    "js": "Jensen-Shannon divergence, nats",
    "tv": "total variation, share of probability",
    "top1": "same likeliest token, share",
    "top_k": "shared among the K likeliest, share",
}


def divergences(seen: Tensor, full: Tensor, k: int = 10) -> dict[str, NDArray[np.float64]]:
    """What lies between the readouts of a run and those of the full model.

    Args:
        seen: logits (rows, vocabulary) of the run.
        full: logits (rows, vocabulary) of the full model.
        k: of `top_k`.

    Returns:
        (rows,) each, see `DIVERGENCES`.
    """
    q, p = (x.double().log_softmax(-1) for x in (seen, full))
    middle = torch.logaddexp(p, q) - np.log(2)
    overlap = [
        len({*a} & {*b}) / k
        for a, b in zip(q.topk(k).indices.tolist(), p.topk(k).indices.tolist(), strict=True)
    ]
    found = {
        "kl": _kl(p, q),
        "js": (_kl(p, middle) + _kl(q, middle)) / 2,
        "tv": (p.exp() - q.exp()).abs().sum(-1) / 2,
        "top1": (q.argmax(-1) == p.argmax(-1)).double(),
        "top_k": torch.tensor(overlap, dtype=torch.float64),
    }
    return {name: values.cpu().numpy() for name, values in found.items()}


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(-1).clamp(min=0)


def edit_share(first: list[int], second: list[int]) -> float:
    """Edit distance of two sequences as a share of the longer one; 0 for two empty ones."""
    return Levenshtein.normalized_distance(first, second)


def first_difference(first: list[int], second: list[int]) -> int | None:
    """Place of the first token that differs; None where there is none."""
    for place, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return place
    return None if len(first) == len(second) else min(len(first), len(second))


def warped_distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Mean distance of two sequences of sounds along their best alignment (dynamic time warping).

    Args:
        first: (patches, features).
        second: (other patches, features).

    Returns:
        The sum of Euclidean distances along the cheapest monotone path, over its length; nan where
        one of them is empty.
    """
    if not len(first) or not len(second):
        return float("nan")
    squared = (
        (first**2).sum(1)[:, None] + (second**2).sum(1)[None] - 2 * first @ second.T
    )  # (patches, other patches)
    near = np.sqrt(np.clip(squared, 0, None))
    cost = np.full((len(first) + 1, len(second) + 1), np.inf)
    steps = np.zeros(cost.shape, int)
    cost[0, 0] = 0
    for i in range(1, len(first) + 1):
        for j in range(1, len(second) + 1):
            before = min(((i - 1, j - 1), (i - 1, j), (i, j - 1)), key=lambda at: cost[at])
            cost[i, j] = cost[before] + near[i - 1, j - 1]
            steps[i, j] = steps[before] + 1
    return float(cost[-1, -1] / steps[-1, -1])
