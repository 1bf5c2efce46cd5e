"""Distances between distributions over the vocabulary, and between sequences of units."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein
from torch import Tensor


def divergences(logits: Tensor, full: Tensor, k: int = 10) -> dict[str, NDArray[np.float64]]:
    """Divergences between the readouts of a run and those of the full model.

    Args:
        logits: logits of the run, (rows, vocabulary).
        full: logits of the full model, (rows, vocabulary).
        k: number of tokens of `top_k`.

    Returns:
        (rows,) each: `kl` (KL divergence from the full model, nats), `js` (Jensen-Shannon
        divergence, nats), `tv` (total variation), `top1` (1 where the argmax is the same), `top_k`
        (share of the k most likely tokens in common).
    """
    q, p = (x.double().log_softmax(-1) for x in (logits, full))  # (rows, vocabulary)
    middle = torch.logaddexp(p, q) - np.log(2)
    overlap = [
        len({*a} & {*b}) / k
        for a, b in zip(q.topk(k).indices.tolist(), p.topk(k).indices.tolist(), strict=True)
    ]
    values = {
        "kl": _kl(p, q),
        "js": (_kl(p, middle) + _kl(q, middle)) / 2,
        "tv": (p.exp() - q.exp()).abs().sum(-1) / 2,
        "top1": (q.argmax(-1) == p.argmax(-1)).double(),
        "top_k": torch.tensor(overlap, dtype=torch.float64),
    }
    return {name: value.cpu().numpy() for name, value in values.items()}


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL divergence of log probabilities, (rows, vocabulary) each: (rows,)."""
    return (p.exp() * (p - q)).sum(-1).clamp(min=0)


def edit_share(first: list[int], second: list[int]) -> float:
    """Edit distance of two sequences over the length of the longer one; 0 if both are empty.

    Example:
        >>> edit_share([1, 2, 3, 4], [1, 3, 4, 5])
        0.5
    """
    return Levenshtein.normalized_distance(first, second)


def first_difference(first: list[int], second: list[int]) -> int | None:
    """Index of the first token that differs; None if the sequences are equal.

    Example:
        >>> first_difference([1, 2, 3], [1, 5, 3])
        1
    """
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return index
    return None if len(first) == len(second) else min(len(first), len(second))


def warped_distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Mean distance of two sequences of feature vectors under dynamic time warping.

    Args:
        first: (patches, features).
        second: (other patches, features).

    Returns:
        Sum of Euclidean distances on the cheapest monotone path, over the length of the path; nan
        if either is empty.
    """
    if not len(first) or not len(second):
        return float("nan")
    return float(warped_path(first, second)[1].mean())


def warped_path(
    first: NDArray[np.float64], second: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The cheapest monotone path through two sequences: dynamic time warping.

    Args:
        first: (patches, features), at least one patch.
        second: (other patches, features), at least one patch.

    Returns:
        Indices of both sequences along the path, (steps, 2), and the Euclidean distances of these
        pairs, (steps,).

    Example:
        >>> path, distances = warped_path(np.array([[0.0], [1.0]]), np.array([[0.0], [0.0], [3.0]]))
        >>> path.tolist(), distances.tolist()
        ([[0, 0], [0, 1], [1, 2]], [0.0, 0.0, 2.0])
    """
    squared = (
        (first**2).sum(1)[:, None] + (second**2).sum(1)[None] - 2 * first @ second.T
    )  # (patches, other patches)
    distance = np.sqrt(np.clip(squared, 0, None))
    cost = np.full((len(first) + 1, len(second) + 1), np.inf)
    cost[0, 0] = 0
    before = dict[tuple[int, int], tuple[int, int]]()
    for i in range(1, len(first) + 1):
        for j in range(1, len(second) + 1):
            previous = min(((i - 1, j - 1), (i - 1, j), (i, j - 1)), key=lambda at: cost[at])
            cost[i, j] = cost[previous] + distance[i - 1, j - 1]
            before[i, j] = previous
    at, steps = (len(first), len(second)), list[tuple[int, int]]()
    while at != (0, 0):
        steps.append((at[0] - 1, at[1] - 1))
        at = before[at]
    path = np.array(steps[::-1])
    return path, distance[path[:, 0], path[:, 1]]
