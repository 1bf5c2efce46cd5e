"""The readout of an exit head at one depth, as a module that one kernel serves for all depths."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor, nn

from eepolicy.compile.functional import structure_of, tensors_of
from eepolicy.compile.gemv import Product, library, product_of
from eepolicy.compile.native import MAX_ROWS, serves
from eepolicy.heads.base import ExitHead
from eepolicy.heads.branch import BranchHead
from eepolicy.heads.drafter import DrafterHead
from eepolicy.heads.fitted import FittedHead
from eepolicy.heads.int8 import has_int8
from eepolicy.heads.lens import LogitLens
from eepolicy.heads.linear import LinearHead, LowRankHead
from eepolicy.heads.tuned import TunedLens
from eepolicy.heads.weights import obstacle

#: heads that compute the same at every depth, apart from their weights
SAME_AT_ALL_DEPTHS = (LogitLens, TunedLens, LinearHead, LowRankHead)


class HeadModule(nn.Module):
    """The readout of a head at one depth, with all tensors that it reads.

    The norm and the output embedding of the model are registered here, and before the head: a deep
    copy of this module then has a lens that refers to their copies.

    Args:
        head: the head, one of `SAME_AT_ALL_DEPTHS`.
        lens: norm and output embedding that it reads.
        ranges: half-open ranges of ids to read out; all ids where there are none.
        vocabulary: number of ids in the vocabulary.
    """

    def __init__(
        self, head: ExitHead, lens: LogitLens, ranges: tuple[tuple[int, int], ...], vocabulary: int
    ) -> None:
        super().__init__()
        assert isinstance(lens.norm, nn.Module)
        assert isinstance(lens.head, nn.Module)
        self.norm, self.embedding = lens.norm, lens.head
        self.head = head
        self.ranges, self.vocabulary = ranges, vocabulary
        self.softcap = lens.logit_softcap
        self._dtypes = [t.dtype for t in self.tensors]

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """Tensors of the head, the norm and the output embedding, in the order of `tensors_of`."""
        return tuple(tensors_of(self).values())

    @cached_property
    def structure(self) -> tuple[object, ...]:
        """Key that is equal for modules which differ in the values of their tensors alone."""
        layouts = tuple((t.shape, t.stride(), t.dtype) for t in self.tensors)
        norm, embedding = structure_of(self.norm), structure_of(self.embedding)
        return type(self.head), norm, embedding, self.softcap, self.ranges, layouts

    def product_for(self, hidden: Tensor) -> Product | None:
        """The product of the kernel for hidden states (..., width); None to run without a kernel.

        Weights in int8 are read by the native library alone, as in layers.
        """
        if serves(hidden) and hidden.numel() <= MAX_ROWS * hidden.shape[-1]:
            return library
        return None if has_int8(self.embedding) else product_of(hidden)

    def is_current(self) -> bool:
        """Whether no tensor has another dtype than before: `half()` changes it in place."""
        return [t.dtype for t in self.tensors] == self._dtypes

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., width) -> (..., vocabulary)."""
        if self.ranges:
            return self.head.logits_among(hidden, 0, self.ranges, self.vocabulary)
        return self.head.logits(hidden, 0)


def head_module(
    head: ExitHead, depth: int, ranges: tuple[tuple[int, int], ...], vocabulary: int
) -> HeadModule | None:
    """The readout of a head at a depth; None for a head that is not known to compile.

    This includes heads, norms and output embeddings with hooks, quantised or offloaded weights.

    Args:
        head: head of the model.
        depth: depth of the readout.
        ranges: half-open ranges of ids to read out; all ids where there are none.
        vocabulary: number of ids in the vocabulary.
    """
    if type(head) is FittedHead:
        head = head.at(depth)
    if type(head) in (BranchHead, DrafterHead):
        head = head.readout  # its layers have run
    if type(head) not in SAME_AT_ALL_DEPTHS:
        return None
    lens = head if isinstance(head, LogitLens) else head.lens
    if type(lens) is not LogitLens:
        return None
    if not isinstance(lens.norm, nn.Module) or not isinstance(lens.head, nn.Module):
        return None
    if obstacle(lens.norm, lens.head, head) is not None:
        return None
    return HeadModule(head, lens, ranges, vocabulary)
