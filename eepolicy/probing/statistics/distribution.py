"""Statistics of one distribution over the vocabulary."""

from __future__ import annotations

from torch import Tensor

from eepolicy.probing.statistics.context import LogitContext


def top1(context: LogitContext) -> Tensor:
    """Id of the most probable token: argmax p.  (rows,) int64."""
    return context.top1


def entropy(context: LogitContext) -> Tensor:
    """Shannon entropy, -sum p log p.  (rows,) nats."""
    return context.entropy


def confidence(context: LogitContext) -> Tensor:
    """Probability of the most probable token, max p.  (rows,), 0 to 1."""
    return context.confidence


def margin(context: LogitContext) -> Tensor:
    """Highest minus second highest probability, p_(1) - p_(2).  (rows,), 0 to 1."""
    return context.confidence - context.second_probability()


def rank_last(context: LogitContext) -> Tensor:
    """Rank of the last layer's top token, 1 + #{v: p(v) > p(argmax p_L)}.  (rows,) int64."""
    return context.rank(context.last.top1)


def probability_last(context: LogitContext) -> Tensor:
    """Probability of the last layer's top token, p(argmax p_L).  (rows,), 0 to 1."""
    return context.probability(context.last.top1)


def rank_next(context: LogitContext) -> Tensor:
    """Rank of the token that follows, 1 + #{v: p(v) > p(next)}.  (rows,) int64."""
    return context.rank(context.next)


def probability_next(context: LogitContext) -> Tensor:
    """Probability of the token that follows, p(next).  (rows,), 0 to 1."""
    return context.probability(context.next)
