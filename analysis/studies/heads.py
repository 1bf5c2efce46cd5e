"""Gain of fitted exit heads over the plain logit lens, on replies that neither was fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from eepolicy import Document, HookedModel, Modality, ProbeResult, probe
from eepolicy.analysis.stats.bootstrap import Intervals, mean_differences, means
from eepolicy.analysis.stats.clustered import as_columns, sums
from eepolicy.analysis.studies.base import Measure, Study, Workspace, by_name, depths_without_branch
from eepolicy.analysis.style import COLOURS, depth_axis, outside_legend
from eepolicy.analysis.tables import markdown_table
from eepolicy.heads import ExitHead

MEASURES = (
    Measure("agreement", "agreement with the last layer", "%", 100.0, 1),
    Measure("kl", "KL from the last layer", "nats"),
    Measure("gap", "entropy minus the last layer's", "nats"),
)


@dataclass(frozen=True, eq=False)
class HeadGain(Study):
    """The plain lens and fitted heads by depth.

    Attributes:
        depths: depths below full without a branch, (depths,).
        documents: number of probed replies.
        lens: measure -> modality -> means of the plain lens, (depths,).
        heads: likewise, of the fitted heads.
        gain: likewise, heads minus lens on the same replies.
    """

    depths: NDArray[np.int64]
    documents: int
    lens: dict[str, dict[str, Intervals]]
    heads: dict[str, dict[str, Intervals]]
    gain: dict[str, dict[str, Intervals]]

    name: ClassVar[str] = "heads"
    title: ClassVar[str] = "Gain of the fitted heads"
    help: ClassVar[str] = "the plain logit lens against the fitted heads, by depth"

    @classmethod
    def run(cls, workspace: Workspace) -> HeadGain:
        """Compare the model's heads with its plain lens on its full-depth replies."""
        return head_gain(workspace.model, workspace.replies)

    def table(self) -> str:
        """One Markdown table for each measure."""
        return "\n\n".join(self.measure_table(measure.name) for measure in MEASURES)

    def measure_table(self, name: str) -> str:
        """One measure as Markdown, one row for each depth."""
        measure = by_name(MEASURES, name)
        modalities = list(self.lens[name])
        parts = {"lens": self.lens, "heads": self.heads, "gain": self.gain}
        headings = ["depth", *(f"{m}, {part}" for m in modalities for part in parts)]
        rows = [
            [
                str(depth),
                *(measure.cell(part[name][m][i]) for m in modalities for part in parts.values()),
            ]
            for i, depth in enumerate(self.depths)
        ]
        title = f"{measure.heading[0].upper()}{measure.heading[1:]}:"
        return f"{title}\n\n{markdown_table(headings, rows)}"

    def to_pandas(self) -> pd.DataFrame:
        """One row for each measure, modality and depth.

        Columns are `lens`, `heads` and `gain`, each with `..._low` and `..._high`.
        """
        rows = [
            {"measure": measure, "modality": modality, "depth": int(depth)}
            | as_columns(
                {
                    "lens": lens[i],
                    "heads": self.heads[measure][modality][i],
                    "gain": self.gain[measure][modality][i],
                }
            )
            for measure, modalities in self.lens.items()
            for modality, lens in modalities.items()
            for i, depth in enumerate(self.depths)
        ]
        return pd.DataFrame(rows)

    def figure(self) -> Figure:
        """Every measure by depth: lens dashed, heads solid, bands 95 % intervals."""
        figure, axes = plt.subplots(1, len(MEASURES), figsize=(10, 3), layout="constrained")
        for ax, measure in zip(axes, MEASURES, strict=True):
            for part, style, name in ((self.lens, "--", "lens"), (self.heads, "-", "heads")):
                for modality, intervals in part[measure.name].items():
                    colour, shown = COLOURS[modality], intervals.scaled(measure.scale)
                    ax.fill_between(
                        self.depths, shown.low, shown.high, color=colour, alpha=0.2, lw=0
                    )
                    label = f"{modality}, {name}"
                    ax.plot(self.depths, shown.value, style, color=colour, label=label)
            depth_axis(ax)
            ax.set_ylabel(measure.heading)
        outside_legend(figure, axes[0])
        return figure


def head_gain(
    model: HookedModel, replies: Sequence[Document], heads: ExitHead | None = None
) -> HeadGain:
    """Probe the same replies with the plain lens and with fitted heads.

    Args:
        model: model that generated the replies.
        replies: replies on which the heads were not fitted.
        heads: the model's heads if None.  Depths with a branch are left out.
    """
    heads = heads or model.heads
    depths = depths_without_branch(model.depth, heads)
    plain, fitted = (
        probe(model, replies, depths=depths, heads=each, statistics=("top1", "entropy", "kl"))
        for each in (model.lens, heads)
    )
    modalities = [m for m in Modality if (plain.modality == m).any()]
    result = HeadGain(plain.depths[:-1], len(replies), {}, {}, {})
    for measure in (m.name for m in MEASURES):
        for part in (result.lens, result.heads, result.gain):
            part[measure] = {}
        for modality in modalities:
            name = modality.name.lower()
            chosen = plain.modality == modality
            before, after = (
                sums(_values(probed, measure)[:, chosen], probed.document[chosen])
                for probed in (plain, fitted)
            )
            result.lens[measure][name] = means(*before)
            result.heads[measure][name] = means(*after)
            result.gain[measure][name] = mean_differences(after, before)
    return result


def _values(result: ProbeResult, measure: str) -> NDArray[np.float64]:
    """A measure below full depth: (depths, tokens)."""
    values: NDArray[np.float64]
    if measure == "gap":
        values = result.entropy - result.entropy[-1]
    else:
        values = getattr(result, measure).astype(float)
    return values[:-1]
