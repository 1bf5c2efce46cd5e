"""What turns a hidden state at some depth into logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from eepolicy.errors import EepolicyError


class ExitHead(ABC):
    """Reads tokens out of hidden states below full depth.

    Examples:
        >>> class Half(eepolicy.ExitHead):
        ...     def __init__(self, lens):
        ...         self.lens = lens
        ...
        ...     def logits(self, hidden, depth):
        ...         return self.lens.logits(hidden, depth) / 2
        >>> model = eepolicy.load("pocket")
        >>> model.heads = Half(model.lens)
    """

    @abstractmethod
    def logits(self, hidden: Tensor, depth: int) -> Tensor:
        """Logits of hidden states after `depth` layers: (..., width) -> (..., vocabulary)."""

    def logits_over(self, hidden: Tensor, depth: int, ids: slice) -> Tensor:
        """The logits of a range of ids alone: (..., width) -> (..., ids).

        A head that can leave the other rows of its output embedding unread overrides this.
        """
        return self.logits(hidden, depth)[..., ids]

    def logits_among(
        self, hidden: Tensor, depth: int, ranges: Sequence[tuple[int, int]], vocabulary: int
    ) -> Tensor:
        """Logits in which ids outside some ranges get the least number there is.

        Args:
            hidden: (..., width), after `depth` layers.
            depth: of them.
            ranges: of ids, half-open.
            vocabulary: ids there are.

        Returns:
            (..., vocabulary).
        """
        least = torch.finfo(hidden.dtype).min
        some = hidden.new_full((*hidden.shape[:-1], vocabulary), least)
        for first, behind in ranges:
            some[..., first:behind] = self.logits_over(hidden, depth, slice(first, behind))
        return some

    def to(self, like: Tensor | PreTrainedModel) -> ExitHead:
        """The same head on a device, in a precision; one without parameters is on all of them."""
        return self

    def restricted_to(self, ids: tuple[int, int]) -> RestrictedHead:
        """The head over a half-open range of ids, such as `model.layout.speech`."""
        return RestrictedHead(self, ids)


class RestrictedHead(ExitHead):
    """A head over the ids of one modality: another distribution, in which nothing else can follow.

    The price is that of its rows of the output embedding.  Its ids are counted from the first of
    the range, and a reply cannot leave the modality or end while it is read out so.

    Args:
        head: whose logits.
        ids: half-open range.
    """

    def __init__(self, head: ExitHead, ids: tuple[int, int]) -> None:
        self.head = head
        self.ids = ids

    def __repr__(self) -> str:
        return f"RestrictedHead({self.head!r}, {self.ids})"

    def to(self, like: Tensor | PreTrainedModel) -> RestrictedHead:
        return RestrictedHead(self.head.to(like), self.ids)

    def logits(self, hidden: Tensor, depth: int) -> Tensor:
        return self.head.logits_over(hidden, depth, slice(*self.ids))

    def logits_over(self, hidden: Tensor, depth: int, ids: slice) -> Tensor:
        raise EepolicyError(
            f"{self!r} reads out the ids {self.ids[0]} to {self.ids[1] - 1} alone: for others, as "
            f"restrict_vocab=True asks for, use {self.head!r}"
        )
