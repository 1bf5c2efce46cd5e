"""Statistics of distributions over the vocabulary, a few rows at a time, nothing kept but them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: name of a statistic: what it says of one readout
STATISTICS = {
    "top1": "the likeliest token",
    "entropy": "entropy, nats",
    "confidence": "probability of the likeliest token",
    "margin": "probability of the likeliest token less that of the second",
    "rank_last": "rank of the last layer's likeliest token, 1 being the likeliest",
    "probability_last": "probability of the last layer's likeliest token",
    "rank_next": "rank of the token that follows, 1 being the likeliest",
    "probability_next": "probability of the token that follows",
    "kl": "KL from the last layer, sum p_L log(p_L / p_d), nats",
    "kl_reverse": "KL to the last layer, sum p_d log(p_d / p_L), nats",
    "js": "Jensen-Shannon divergence from the last layer, nats",
    "cosine_last": "cosine of the hidden state with the last layer's",
    "norm_last": "norm of the hidden state over that of the last layer's",
    "cosine_previous": "cosine of the hidden state with that one layer before",
    "norm_previous": "norm of the hidden state over that one layer before",
}
#: those that compare with the last layer's distribution
AGAINST_LAST = ("rank_last", "probability_last", "kl", "kl_reverse", "js")
#: those that are read off the hidden states alone
OF_STATES = ("cosine_last", "norm_last", "cosine_previous", "norm_previous")
#: those whose means say little, since their tails are long
MEDIANS = ("rank_last", "rank_next")
#: those that are whole numbers
WHOLE = ("top1", "rank_last", "rank_next")


#: stands for the logarithm of nothing, which times nothing would be nan
_LEAST = -1e30
_LOG_2 = 0.6931471805599453


@dataclass
class Last:
    """The last layer's distributions, to which others are compared.

    Attributes:
        probabilities: (rows, vocabulary).
        entropy: (rows,) in nats.
        top1: (rows,) likeliest tokens.
        logs: (rows, vocabulary) log-probabilities, where they are wanted.
    """

    probabilities: Tensor
    entropy: Tensor
    top1: Tensor
    logs: Tensor | None

    @classmethod
    def of(cls, logits: Tensor, wanted: frozenset[str]) -> Last:
        """From logits (rows, vocabulary), for some of `STATISTICS`."""
        logs = logits.log_softmax(-1).clamp_(min=_LEAST)
        probabilities = logs.exp()
        entropy = -torch.linalg.vecdot(probabilities, logs)
        return cls(probabilities, entropy, argmax(logits), logs if "kl_reverse" in wanted else None)

    def __getitem__(self, rows: slice) -> Last:
        logs = None if self.logs is None else self.logs[rows]
        return Last(self.probabilities[rows], self.entropy[rows], self.top1[rows], logs)


def measure(
    logits: Tensor, last: Last | None, following: Tensor, wanted: frozenset[str]
) -> dict[str, Tensor]:
    """Statistics of some rows.

    Args:
        logits: (rows, vocabulary).
        last: the last layer's, of the same rows; None leaves out what compares with it.
        following: (rows,) ids that really follow, -1 where nothing does.
        wanted: names of `STATISTICS`.

    Returns:
        (rows,) each, by name.  Of the token that follows where there is none: rank -1, probability
        nan.
    """
    found: dict[str, Tensor] = {}
    found["top1"] = argmax(logits)
    first = found["top1"][:, None]
    targets = {"next": following.clamp(min=0)[:, None]}
    if last is not None:
        targets["last"] = last.top1[:, None]
    # one array holds what is in passing: a new one for each would cost more than the sums
    passing = torch.empty_like(logits)
    for name, target in targets.items():
        if f"rank_{name}" in wanted:
            # zeros and ones as floats are summed five times faster than as booleans, and exactly
            higher = torch.gt(logits, logits.gather(-1, target), out=passing)
            found[f"rank_{name}"] = 1 + higher.sum(-1).long()
    # shifted by the highest logit, so that no digits are lost on what is common to all
    shifted = (logits - logits.gather(-1, first)).clamp_(min=_LEAST)
    probabilities = shifted.softmax(-1)
    found["confidence"] = probabilities.gather(-1, first)[:, 0]
    total = -found["confidence"].log()
    for name, target in targets.items():
        if f"probability_{name}" in wanted:
            found[f"probability_{name}"] = probabilities.gather(-1, target)[:, 0]
    if wanted & {"entropy", "kl_reverse", "js"}:
        found["entropy"] = total - torch.linalg.vecdot(probabilities, shifted)
    if last is not None:
        if "kl" in wanted:
            cross = total - torch.linalg.vecdot(last.probabilities, shifted)
            found["kl"] = (cross - last.entropy).clamp(min=0)
        if "kl_reverse" in wanted:
            cross = -torch.linalg.vecdot(probabilities, last.logs)
            found["kl_reverse"] = (cross - found["entropy"]).clamp(min=0)
        if "js" in wanted:
            # twice the mixture m: H(m) = log 2 - sum 2m log 2m / 2
            twice = torch.add(probabilities, last.probabilities, out=passing)
            twice.clamp_(min=torch.finfo(twice.dtype).tiny)
            logs = torch.log(twice, out=shifted)
            mixed = _LOG_2 - torch.linalg.vecdot(twice, logs) / 2
            found["js"] = (mixed - (last.entropy + found["entropy"]) / 2).clamp(0, _LOG_2)
    if "margin" in wanted:
        second = probabilities.scatter_(-1, first, 0.0).amax(-1)
        found["margin"] = found["confidence"] - second
    nothing = following < 0
    if "rank_next" in wanted:
        found["rank_next"] = found["rank_next"].masked_fill(nothing, -1)
    if "probability_next" in wanted:
        found["probability_next"] = found["probability_next"].masked_fill(nothing, float("nan"))
    return {name: values for name, values in found.items() if name in wanted}


def compare_states(states: Tensor, others: Tensor | None) -> tuple[Tensor, Tensor]:
    """Cosine, and ratio of norms, of hidden states: (rows, width) twice -> (rows,) twice."""
    if others is None:
        none = torch.full((len(states),), float("nan"), device=states.device)
        return none, none
    wide = torch.promote_types(states.dtype, torch.float32)
    states, others = states.to(wide), others.to(wide)
    return torch.cosine_similarity(states, others, dim=-1), states.norm(dim=-1) / others.norm(
        dim=-1
    )


def argmax(logits: Tensor) -> Tensor:
    """Places of the highest: (rows, n) -> (rows,); on a CPU by numpy, ten times as fast."""
    if logits.device.type != "cpu":
        return logits.argmax(-1)
    return torch.from_numpy(logits.detach().numpy().argmax(-1))
