"""What decoding records of every frame, and what a reply costs in both models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eepolicy.trace import Trace


@dataclass(frozen=True)
class CodebookCosts:
    """What a layer call and a readout cost in both models, in one unit.

    Attributes:
        backbone_layer: a layer of the backbone.
        depth_layer: a layer of the depth decoder.
        backbone_readout: an evaluation of the first codebook's output embedding.
        depth_readout: an evaluation of the output embedding of another codebook.
        unit: `"FLOPs"` a position, or `"seconds"` a call of one position.
    """

    backbone_layer: float
    depth_layer: float
    backbone_readout: float
    depth_readout: float
    unit: str

    def scaled(self, factor: float, unit: str) -> CodebookCosts:
        """All costs times a factor, in another unit."""
        return CodebookCosts(
            self.backbone_layer * factor,
            self.depth_layer * factor,
            self.backbone_readout * factor,
            self.depth_readout * factor,
            unit,
        )

    @property
    def relative(self) -> CodebookCosts:
        """The costs in units of a layer of the backbone."""
        return self.scaled(1 / self.backbone_layer, "layers of the backbone")


@dataclass(frozen=True, eq=False)
class CodebookTrace:
    """The frames of a reply, with the depths and costs of both models.

    Attributes:
        backbone: trace of the first codes; a token is a frame.
        depth_decoder: trace of the other codes that were computed.  The chunk of a code is its
            frame, and its phase is the number of its codebook minus 1, counted from 0.
        num_codebooks: (frames,) number of codes that were computed, the first one included.
        max_codebooks: number of codes of a whole frame.
    """

    backbone: Trace
    depth_decoder: Trace
    num_codebooks: NDArray[np.int64]
    max_codebooks: int

    def __len__(self) -> int:
        return len(self.num_codebooks)

    def __repr__(self) -> str:
        def depth(trace: Trace) -> str:
            return f"{trace.mean_depth('speech'):.2f} of {trace.full_depth}"

        return (
            f"CodebookTrace({len(self)} frames, {self.mean_codebooks:.2f} of {self.max_codebooks} "
            f"codebooks, mean depth {depth(self.backbone)} in the backbone and "
            f"{depth(self.depth_decoder)} in the depth decoder)"
        )

    @property
    def mean_codebooks(self) -> float:
        """Mean number of codes that were computed for a frame; nan without frames."""
        return float(self.num_codebooks.mean()) if len(self) else float("nan")

    def depth_layer_calls(self) -> NDArray[np.int64]:
        """Layer calls of the depth decoder for each frame: (frames,)."""
        trace = self.depth_decoder
        calls = np.bincount(trace.chunk, trace.layer_calls, len(self)).astype(np.int64)
        return calls

    def frame_costs(self, costs: CodebookCosts) -> NDArray[np.float64]:
        """The cost of each frame in both models: (frames,).

        FLOPs count the positions that went through a layer.  Other units count layer calls, as a
        call of a few positions takes as long as one of a single position.  Layers that only stored
        keys and values are not counted, nor are prompts.

        Args:
            costs: costs of a layer and of a readout.
        """
        by_position = costs.unit == "FLOPs"

        def layers(trace: Trace) -> NDArray[np.int64]:
            return trace.layer_positions if by_position else trace.layer_calls

        first, other = self.backbone, self.depth_decoder
        backbone = layers(first) * costs.backbone_layer + first.readouts * costs.backbone_readout
        each = layers(other) * costs.depth_layer + other.readouts * costs.depth_readout
        total: NDArray[np.float64] = backbone + np.bincount(other.chunk, each, len(self))
        return total

    def __getitem__(self, frames: slice) -> CodebookTrace:
        """Some of the frames; a slice without a step."""
        start, stop, _ = frames.indices(len(self))
        chosen = (self.depth_decoder.chunk >= start) & (self.depth_decoder.chunk < stop)
        depth = self.depth_decoder[chosen]
        depth = replace(depth, chunk=depth.chunk - start)
        return replace(
            self,
            backbone=self.backbone[frames],
            depth_decoder=depth,
            num_codebooks=self.num_codebooks[frames],
        )

    def to_dict(self) -> dict[str, Any]:
        """The trace as plain JSON types."""
        return {
            "backbone": self.backbone.to_dict(),
            "depth_decoder": self.depth_decoder.to_dict(),
            "num_codebooks": self.num_codebooks.tolist(),
            "max_codebooks": self.max_codebooks,
        }

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> CodebookTrace:
        """The trace that `to_dict` wrote."""
        return cls(
            Trace.from_dict(plain["backbone"]),
            Trace.from_dict(plain["depth_decoder"]),
            np.array(plain["num_codebooks"], np.int64),
            plain["max_codebooks"],
        )
