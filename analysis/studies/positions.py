"""Entropy and agreement by position in the chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from eepolicy import Modality, ProbeResult
from eepolicy.analysis.stats.bootstrap import Interval, Intervals, means
from eepolicy.analysis.stats.clustered import as_columns, sums
from eepolicy.analysis.studies.base import Study, Workspace
from eepolicy.analysis.style import COLOURS, MARKERS, outside_legend
from eepolicy.analysis.tables import MISSING, markdown_table

EXIT = 0.7  # depth of the agreement, as a share of full depth


@dataclass(frozen=True, eq=False)
class ChunkPositions(Study):
    """Entropy at full depth, and agreement of one depth with it, by position in the chunk.

    The last chunk of a reply may be longer than the others; its further positions are left out.

    Attributes:
        depth: depth of the agreement.
        entropy: modality -> entropy at full depth in nats, (positions,).
        agreement: modality -> agreement of the depth with the last layer, (positions,).
    """

    depth: int
    entropy: dict[str, Intervals]
    agreement: dict[str, Intervals]

    name: ClassVar[str] = "positions"
    title: ClassVar[str] = "By position in the chunk"
    help: ClassVar[str] = "entropy, and agreement of one depth, by position in the chunk"

    @classmethod
    def run(cls, workspace: Workspace) -> ChunkPositions:
        """Measure the probe of the full-depth replies at 0.7 of full depth."""
        layout = workspace.model.layout
        chunks = {"text": layout.text_chunk, "speech": layout.speech_chunk}
        return chunk_positions(workspace.probed, workspace.depth(EXIT), chunks)

    def _columns(self) -> dict[str, Intervals]:
        entropy = {f"{m}, entropy, nats": values for m, values in self.entropy.items()}
        return entropy | {
            f"{m}, agreement of depth {self.depth}": values for m, values in self.agreement.items()
        }

    def table(self) -> str:
        """Markdown, one row for each position."""
        columns = self._columns()
        longest = max(len(c.value) for c in columns.values())
        rows = [
            [
                str(i),
                *(c[i].text() if i < len(c.value) else MISSING for c in columns.values()),
            ]
            for i in range(longest)
        ]
        return markdown_table(["position", *columns], rows)

    def to_pandas(self) -> pd.DataFrame:
        """One row for each modality and position: `entropy`, `agreement`, `..._low`, `..._high`."""
        rows = [
            {"modality": modality, "position": i}
            | as_columns({"entropy": entropy[i], "agreement": self.agreement[modality][i]})
            for modality, entropy in self.entropy.items()
            for i in range(len(entropy.value))
        ]
        return pd.DataFrame(rows)

    def figure(self) -> Figure:
        """Both measures by position, bars 95 % intervals."""
        figure, axes = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained")
        drawn = (
            (axes[0], self.entropy, "entropy at full depth, nats"),
            (
                axes[1],
                self.agreement,
                f"agreement of depth {self.depth}\nwith the last layer, share",
            ),
        )
        for ax, by_modality, label in drawn:
            for modality, mean in by_modality.items():
                ax.errorbar(
                    np.arange(len(mean.value)),
                    mean.value,
                    yerr=mean.bars,
                    color=COLOURS[modality],
                    marker=MARKERS[modality],
                    ms=3,
                    label=modality,
                )
            ax.set_xlabel("position in the chunk")
            ax.set_ylabel(label)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        outside_legend(figure, axes[0])
        return figure


def chunk_positions(result: ProbeResult, depth: int, chunks: dict[str, int]) -> ChunkPositions:
    """Measure entropy and agreement by position in the chunk.

    Args:
        result: probe with `entropy` and `top1`.
        depth: depth of the agreement.
        chunks: modality -> number of positions of a chunk.
    """
    agreement = result.agreement[int(np.flatnonzero(result.depths == depth)[0])]
    return ChunkPositions(
        depth,
        {m: by_position(result, result.entropy[-1], m, count) for m, count in chunks.items()},
        {m: by_position(result, agreement, m, count) for m, count in chunks.items()},
    )


def by_position(
    result: ProbeResult, values: NDArray[np.float64], modality: str, count: int
) -> Intervals:
    """Means of a value at each position of a chunk.

    Args:
        result: probe.
        values: (tokens,).
        modality: `"text"` or `"speech"`.
        count: number of positions.

    Returns:
        Intervals over documents, (count,).
    """
    chosen = result.modality == Modality[modality.upper()]
    at_position = result.phase == np.arange(count)[:, None]  # (positions, tokens)
    intervals: Interval[NDArray[np.float64]] = means(
        *sums(np.where(at_position & chosen, values, np.nan), result.document)
    )
    return intervals
