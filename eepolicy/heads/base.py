"""The interface of exit heads, and the head over one range of ids."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eepolicy.arguments import checked
from eepolicy.errors import EepolicyError


class ExitHead(nn.Module, ABC):
    """Turns hidden states below full depth into logits.

    An exit head is a `torch.nn.Module`.  Its `parameters()` and its `state_dict()` hold the weights
    of the head alone.  A subclass that uses the norm or the output embedding of the model reads
    them through a `LogitLens`, which refers to them and registers nothing.

    A subclass implements `logits` and calls `super().__init__()` before it assigns attributes.

    Raises:
        EepolicyError: a subclass assigns an attribute before it calls `super().__init__()`.

    Examples:
        >>> class Half(eepolicy.ExitHead):
        ...     def __init__(self, lens):
        ...         super().__init__()
        ...         self.lens = lens
        ...
        ...     def logits(self, hidden, depth):
        ...         return self.lens.logits(hidden, depth) / 2
        >>> model = eepolicy.load("pocket")
        >>> model.heads = Half(model.lens)
        >>> list(model.heads.parameters())
        []
    """

    @abstractmethod
    def logits(self, hidden: Tensor, depth: int) -> Tensor:
        """Compute the logits of hidden states.

        Args:
            hidden: (..., width), the states after `depth` layers and after those of `layers_at`.
            depth: number of layers of the model that the states have passed.

        Returns:
            (..., vocabulary).
        """

    def layers_at(self, depth: int) -> Sequence[nn.Module]:
        """Decoder layers that the head owns at a depth; see `BranchHead`.

        If there are some, `logits` takes the hidden states after these layers.
        """
        return ()

    def sources_at(self, depth: int) -> Sequence[int]:
        """Indices of the model's layers that the layers of `layers_at` are copies of.

        They have the same kind of attention.
        """
        return ()

    @property
    def branch_depths(self) -> tuple[int, ...]:
        """Depths at which the head owns decoder layers, rising; 0 for a drafter."""
        return ()

    def logits_over(self, hidden: Tensor, depth: int, ids: slice) -> Tensor:
        """Compute the logits of a range of ids.

        Override this where the head can skip the other rows of its output embedding.

        Args:
            hidden: (..., width), the states after `depth` layers.
            depth: number of layers that the states have passed.
            ids: range of ids, without a step.

        Returns:
            (..., ids).
        """
        return self.logits(hidden, depth)[..., ids]

    def logits_among(
        self, hidden: Tensor, depth: int, ranges: Sequence[tuple[int, int]], vocabulary: int
    ) -> Tensor:
        """Compute the logits of some ranges of ids and set all others to the minimum of the dtype.

        Args:
            hidden: (..., width), the states after `depth` layers.
            depth: number of layers that the states have passed.
            ranges: half-open ranges of ids.
            vocabulary: number of ids in the vocabulary.

        Returns:
            (..., vocabulary).
        """
        minimum = torch.finfo(hidden.dtype).min
        logits = hidden.new_full((*hidden.shape[:-1], vocabulary), minimum)
        for start, stop in ranges:
            logits[..., start:stop] = self.logits_over(hidden, depth, slice(start, stop))
        return logits

    def forward(self, hidden: Tensor, depth: int) -> Tensor:
        """Call `logits`: (..., width) -> (..., vocabulary)."""
        return self.logits(hidden, depth)

    @checked()
    def restricted_to(self, ids: tuple[int, int]) -> RestrictedHead:
        """Restrict the head to a half-open range of ids, such as `model.layout.speech`."""
        return RestrictedHead(self, ids)

    # torch allows plain attributes before `Module.__init__`, and fails later or not at all
    def __setattr__(self, name: str, value: Any) -> None:
        if "_parameters" not in self.__dict__:
            raise _not_initialised(self)
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if "_parameters" not in self.__dict__ and not name.startswith("__"):
            raise _not_initialised(self)
        return super().__getattr__(name)


def _not_initialised(head: ExitHead) -> EepolicyError:
    name = type(head).__name__
    return EepolicyError(
        f"{name} is an exit head, which is a torch.nn.Module, but its __init__ does not call "
        f"super().__init__(): call it in {name}.__init__ before any attribute is assigned"
    )


class RestrictedHead(ExitHead):
    """A head over the ids of one modality.

    Its probabilities are normalised over these ids alone.  It reads only the rows of the output
    embedding that belong to them.  Id 0 of its logits is the first id of the range.  A reply that
    is read out with it cannot leave the modality and cannot end.

    Args:
        head: head whose logits are restricted.
        ids: half-open range of ids.
    """

    def __init__(self, head: ExitHead, ids: tuple[int, int]) -> None:
        super().__init__()
        self.head = head
        self.ids = ids

    def __repr__(self) -> str:
        return f"RestrictedHead({self.head!r}, {self.ids})"

    def logits(self, hidden: Tensor, depth: int) -> Tensor:
        return self.head.logits_over(hidden, depth, slice(*self.ids))

    def layers_at(self, depth: int) -> Sequence[nn.Module]:
        return self.head.layers_at(depth)

    def sources_at(self, depth: int) -> Sequence[int]:
        return self.head.sources_at(depth)

    @property
    def branch_depths(self) -> tuple[int, ...]:
        return self.head.branch_depths

    def logits_over(self, hidden: Tensor, depth: int, ids: slice) -> Tensor:
        raise EepolicyError(
            f"{self!r} reads out the ids {self.ids[0]} to {self.ids[1] - 1} alone; for other ids, "
            f"which restrict_vocab=True needs, use {self.head!r}"
        )
