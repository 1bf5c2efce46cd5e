"""Rank and recall of tokens that the caller gives, such as the word that is being spoken."""

from __future__ import annotations

from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.probing.statistics.base import Statistic
from eepolicy.probing.statistics.context import LogitContext


def given_rank(name: str, text_only: bool = False) -> Statistic:
    """Rank of given tokens at each depth: the column `rank_<name>`.

    The rank of one token is 1 + #{v: p(v) > p(token)}.  Where a position has several given tokens,
    the value is the best of their ranks.  Where it has none, the value is -1.

    Args:
        name: key of `Document.given`.
        text_only: count only the text ids v.  The column is `text_rank_<name>`.  At speech
            positions, this rank says how a text token stands among text even where speech ids have
            nearly all of the mass.

    Returns:
        A statistic for `probe(statistics=...)`.

    Examples:
        >>> import eepolicy
        >>> from eepolicy.probing import given_rank
        >>> model = eepolicy.load("pocket")
        >>> out = model.generate("What color is snow?")
        >>> document = eepolicy.Document.of(out, given={"white": [[638]] * len(out.tokens)})
        >>> result = eepolicy.probe(model, document, statistics=[given_rank("white")])
        >>> result.rank_white.shape == (20, len(out.tokens))
        True
    """

    def rank(context: LogitContext) -> Tensor:
        return context.given_rank(name, text_only)

    return Statistic(
        name=f"text_rank_{name}" if text_only else f"rank_{name}",
        description=f"rank of the given tokens, {name}{', among text ids' if text_only else ''}",
        compute=rank,
        integer=True,
        average="median",
        given=name,
    )


def given_recall(name: str, k: int) -> Statistic:
    """Whether one of the given tokens is among the `k` most likely: the column `recall<k>_<name>`.

    The mean over positions is recall@k.  Where a position has no given token, the value is nan.

    Args:
        name: key of `Document.given`.
        k: number of most likely tokens.

    Returns:
        A statistic for `probe(statistics=...)`.

    Raises:
        EepolicyError: `k` is below one.
    """
    if k < 1:
        raise EepolicyError(f"recall@k needs a k of at least 1; got {k}")

    def recall(context: LogitContext) -> Tensor:
        rank = context.given_rank(name)
        within = (rank <= k).to(context.logits.dtype)
        return within.masked_fill(rank < 0, float("nan"))

    return Statistic(
        name=f"recall{k}_{name}",
        description=f"given tokens, {name}, among the {k} most likely",
        compute=recall,
        given=name,
    )
