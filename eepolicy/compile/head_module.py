"""Exit heads as modules, so that what they do at one depth can be compiled for all."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from torch import Tensor, nn

from eepolicy.compile.functional import tensors_of
from eepolicy.heads.base import ExitHead
from eepolicy.heads.fitted import FittedHead
from eepolicy.heads.lens import LogitLens
from eepolicy.heads.linear import LinearHead, LowRankHead
from eepolicy.heads.tuned import TunedLens

#: fitted heads that do the same at all depths, but for their parameters
SAME = (TunedLens, LinearHead, LowRankHead)


class HeadModule(nn.Module):
    """What a head does at one depth.

    Args:
        lens: the model's norm and head.
        head: a fitted one of the kinds of `SAME`, in place of the lens.
        depth: at which it is read.
        ranges: of ids, half-open, that alone are read out; all where there are none.
        vocabulary: ids there are.
    """

    def __init__(
        self,
        lens: LogitLens,
        head: FittedHead | None,
        depth: int,
        ranges: tuple[tuple[int, int], ...],
        vocabulary: int,
    ) -> None:
        super().__init__()
        self.ranges, self.vocabulary = ranges, vocabulary
        self.norm, self.head, self.logit_softcap = lens.norm, lens.head, lens.logit_softcap
        self.kind = None if head is None else type(head)
        own = {} if head is None else head.at(depth)
        self.own = nn.ParameterDict({k: nn.Parameter(p, False) for k, p in own.items()})

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """Its own and the lens', in the order of `tensors_of`."""
        return tuple(tensors_of(self).values())

    @cached_property
    def alike(self) -> tuple[object, ...]:
        """What is the same for all that do the same, but for the numbers in their tensors."""
        laid_out = tuple((t.shape, t.stride(), t.dtype) for t in self.tensors)
        return self.kind, self.norm, self.head, self.logit_softcap, self.ranges, laid_out

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., width) -> (..., vocabulary)."""
        lens = LogitLens(self.norm, self.head, self.logit_softcap)
        own: dict[str, Any] = {name: [parameter] for name, parameter in self.own.items()}
        head = lens if self.kind is None else self.kind(lens, (0,), **own)
        if self.ranges:
            return head.logits_among(hidden, 0, self.ranges, self.vocabulary)
        return head.logits(hidden, 0)


def head_at(
    head: ExitHead, depth: int, ranges: tuple[tuple[int, int], ...], vocabulary: int
) -> HeadModule | None:
    """What a head does at a depth, as a module, see `HeadModule`; None where that is not known."""
    fitted = head if isinstance(head, FittedHead) and type(head) in SAME else None
    lens = fitted.lens if fitted else head
    if type(lens) is not LogitLens:
        return None
    if not isinstance(lens.norm, nn.Module) or not isinstance(lens.head, nn.Module):
        return None
    return HeadModule(lens, fitted, depth, ranges, vocabulary)
