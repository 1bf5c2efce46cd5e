"""Exit heads of the depth decoder: one map for each depth, which all codebooks share."""

from __future__ import annotations

from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.heads.base import ExitHead
from eepolicy.heads.fitted import FittedHead
from eepolicy.heads.lens import LogitLens
from eepolicy.heads.tuned import TunedLens


class CodebookHead(ExitHead):
    """The head of one codebook: the map of a depth, then the norm and the codebook's embedding.

    The map of a tuned lens takes states to those of the last layer, so one serves all codebooks.

    Args:
        lens: final norm of the depth decoder, and output embedding of the codebook.
        maps: tuned lenses of the depth decoder; None for none.
        full_depth: number of layers of the depth decoder.
    """

    def __init__(self, lens: LogitLens, maps: FittedHead | None, full_depth: int) -> None:
        super().__init__()
        self.lens, self.maps, self.full_depth = lens, maps, full_depth

    def logits(self, hidden: Tensor, depth: int) -> Tensor:
        if self.maps is not None and depth < self.full_depth:
            map_of = self.maps.at(depth)
            assert isinstance(map_of, TunedLens)
            hidden = map_of.translate(hidden)
        return self.lens.logits(hidden, depth)


def check_maps(maps: object, full_depth: int) -> FittedHead | None:
    """Return heads of a depth decoder if they are tuned lenses below its full depth.

    Args:
        maps: the heads; None for none.
        full_depth: number of layers of the depth decoder.

    Raises:
        EepolicyError: they are of another kind, or at other depths.
    """
    if maps is None:
        return None
    if not isinstance(maps, FittedHead) or not all(
        isinstance(maps.at(depth), TunedLens) for depth in maps.depths
    ):
        raise EepolicyError(
            f"heads of a depth decoder are tuned lenses, whose maps serve all codebooks; got "
            f"{maps!r}: fit them with eepolicy.fitting.fit_depth_decoder"
        )
    if maps.depths and maps.depths[-1] >= full_depth:
        raise EepolicyError(
            f"the depth decoder has heads below depth {full_depth}; got {maps.depths}"
        )
    return maps
