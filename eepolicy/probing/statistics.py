"""Statistics of distributions over the vocabulary, a few rows at a time, nothing kept but them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eepolicy.compile.kernel_cache import DynamicDims

#: as `KernelCache.run`
Run = Callable[..., "tuple[Tensor, ...] | None"]

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
    logs: Tensor | None = None

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
    logits: Tensor,
    last: Last | None,
    following: Tensor,
    wanted: frozenset[str],
    run: Run | None = None,
) -> dict[str, Tensor]:
    """Statistics of some rows.

    Args:
        logits: (rows, vocabulary).
        last: the last layer's, of the same rows; None leaves out what compares with it.
        following: (rows,) ids that really follow, -1 where nothing does.
        wanted: names of `STATISTICS`.
        run: compiles what is done to the rows, see `KernelCache.run`; None runs it as it is.

    Returns:
        (rows,) each, by name.  Of the token that follows where there is none: rank -1, probability
        nan.
    """
    first = argmax(logits)
    given = [logits, first, following]
    if last is not None:
        given += [last.probabilities, last.entropy, last.top1]
        given += [] if last.logs is None else [last.logs]
    names = [
        name
        for name in STATISTICS
        if name in wanted - {"top1", *OF_STATES} and (last is not None or name not in AGAINST_LAST)
    ]

    def function(logits: Tensor, first: Tensor, following: Tensor, *of_last: Tensor) -> Any:
        return _measured(logits, first, following, names, Last(*of_last) if of_last else None)

    out = None
    if run is not None and names:
        key = (_measured, *names, len(given), logits.device)
        kind = (key, logits.shape, *((tensor.stride(), tensor.dtype) for tensor in given))
        out = run(key, kind, lambda: function, given, lambda: [DynamicDims(t, [0]) for t in given])
    found = dict(zip(names, function(*given) if out is None else out, strict=True))
    nothing = following < 0
    if "rank_next" in found:
        found["rank_next"] = found["rank_next"].masked_fill(nothing, -1)
    if "probability_next" in found:
        found["probability_next"] = found["probability_next"].masked_fill(nothing, float("nan"))
    return found | ({"top1": first} if "top1" in wanted else {})


def _measured(
    logits: Tensor,
    first: Tensor,
    following: Tensor,
    names: Sequence[str],
    last: Last | None,
) -> tuple[Tensor, ...]:
    """The statistics of `names`, (rows,) each; see `measure`.

    Where no token follows, they say something of another one.
    """
    found: dict[str, Tensor] = {}
    first = first[:, None]
    targets = {"next": following.clamp(min=0)[:, None]}
    if last is not None:
        targets["last"] = last.top1[:, None]
    # one array holds what is in passing: a new one for each would cost more than the sums
    passing = torch.empty_like(logits)
    for name, target in targets.items():
        if f"rank_{name}" in names:
            # zeros and ones as floats are summed five times faster than as booleans, and exactly
            higher = torch.gt(logits, logits.gather(-1, target), out=passing)
            found[f"rank_{name}"] = 1 + higher.sum(-1).long()
    # shifted by the highest logit, so that no digits are lost on what is common to all
    shifted = (logits - logits.gather(-1, first)).clamp_(min=_LEAST)
    weights, share = _weights(shifted)
    found["confidence"] = weights.gather(-1, first)[:, 0] * share
    total = -found["confidence"].log()
    for name, target in targets.items():
        if f"probability_{name}" in names:
            found[f"probability_{name}"] = weights.gather(-1, target)[:, 0] * share
    if {*names} & {"entropy", "kl_reverse", "js"}:
        found["entropy"] = total - torch.linalg.vecdot(weights, shifted) * share
    if last is not None:
        if "kl" in names:
            cross = total - torch.linalg.vecdot(last.probabilities, shifted)
            found["kl"] = (cross - last.entropy).clamp(min=0)
        if "kl_reverse" in names:
            assert last.logs is not None
            cross = -torch.linalg.vecdot(weights, last.logs) * share
            found["kl_reverse"] = (cross - found["entropy"]).clamp(min=0)
        if "js" in names:
            # twice the mixture m: H(m) = log 2 - sum 2m log 2m / 2
            twice = torch.addcmul(last.probabilities, weights, share[:, None], out=passing)
            twice.clamp_(min=torch.finfo(twice.dtype).tiny)
            logs = torch.log(twice, out=shifted)
            gemv_or_blas = _LOG_2 - torch.linalg.vecdot(twice, logs) / 2
            found["js"] = (gemv_or_blas - (last.entropy + found["entropy"]) / 2).clamp(0, _LOG_2)
    if "margin" in names:
        second = weights.scatter_(-1, first, 0.0).amax(-1) * share
        found["margin"] = found["confidence"] - second
    return tuple(found[name] for name in names)


def _weights(shifted: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities as weights (rows, vocabulary), and by what each row of them is multiplied.

    A compiler takes their sum in the loop that uses them; by itself, torch takes a softmax in less
    time than the exponentials alone.
    """
    if torch.compiler.is_compiling():
        weights = shifted.exp()
        return weights, 1 / weights.sum(-1)
    return shifted.softmax(-1), shifted.new_ones(len(shifted))


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
