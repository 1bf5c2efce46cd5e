"""What fitted heads bring: the plain lens and the heads, on replies that neither was fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from eepolicy import Document, HookedModel, Modality, ProbeResult, probe
from eepolicy.analysis.stats.clustered import Intervals, mean_differences, means, sums
from eepolicy.analysis.style import COLOURS, depth_axis
from eepolicy.heads import ExitHead

#: what is compared: its name, unit and digits
MEASURES = {
    "agreement": ("agreement with the last layer, %", 100.0, 1),
    "kl": ("KL from the last layer, nats", 1.0, 2),
    "gap": ("entropy less the last layer's, nats", 1.0, 2),
}


@dataclass(frozen=True, eq=False)
class HeadGain:
    """The plain lens and fitted heads by depth.

    Attributes:
        depths: (depths,) below full.
        documents: how many replies were probed.
        before: measure: modality: of the plain lens, (depths,).
        after: likewise, of the heads.
        gain: likewise, heads less lens on the same replies.
    """

    depths: NDArray[np.int64]
    documents: int
    before: dict[str, dict[str, Intervals]]
    after: dict[str, dict[str, Intervals]]
    gain: dict[str, dict[str, Intervals]]

    def table(self, measure: str) -> str:
        """A measure as Markdown, a line a depth."""
        label, scale, digits = MEASURES[measure]
        names = list(self.before[measure])
        lines = [
            f"{label[0].upper()}{label[1:]}:",
            "",
            "| depth | " + " | ".join(f"{n}, lens | {n}, heads | {n}, gain" for n in names) + " |",
            "|---" * (1 + 3 * len(names)) + "|",
        ]
        for i, depth in enumerate(self.depths):
            cells = [
                part[measure][n].text(i, digits, scale)
                for n in names
                for part in (self.before, self.after, self.gain)
            ]
            lines.append(f"| {depth} | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Every measure by depth: dashed the lens, solid the heads, bands 95 % intervals."""
        figure, axes = plt.subplots(1, len(MEASURES), figsize=(10, 3), layout="constrained")
        for ax, (measure, (label, scale, _)) in zip(axes, MEASURES.items(), strict=True):
            for part, style, name in ((self.before, "--", "lens"), (self.after, "-", "heads")):
                for modality, found in part[measure].items():
                    colour = COLOURS[modality]
                    low, high = scale * found.low, scale * found.high
                    ax.fill_between(self.depths, low, high, color=colour, alpha=0.2, lw=0)
                    ax.plot(
                        self.depths,
                        scale * found.value,
                        style,
                        color=colour,
                        label=f"{modality}, {name}",
                    )
            depth_axis(ax)
            ax.set_ylabel(label)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
        return figure


def head_gain(
    model: HookedModel, replies: Sequence[Document], heads: ExitHead | None = None
) -> HeadGain:
    """Probe the same replies with the plain lens and with heads.

    Args:
        model: that gave the replies.
        replies: on which the heads were not fitted.
        heads: the model's own where none are given.
    """
    statistics = ("top1", "entropy", "kl")
    lens = probe(model, replies, heads=model.lens, statistics=statistics)
    fitted = probe(model, replies, heads=heads or model.heads, statistics=statistics)
    present = [m for m in Modality if (lens.modality == m).any()]
    before: dict[str, dict[str, Intervals]] = {}
    after: dict[str, dict[str, Intervals]] = {}
    gain: dict[str, dict[str, Intervals]] = {}
    for measure in MEASURES:
        for part in (before, after, gain):
            part[measure] = {}
        for modality in present:
            name = modality.name.lower()
            chosen = lens.modality == modality
            one, two = (
                sums(_values(result, measure)[:, chosen], result.document[chosen])
                for result in (lens, fitted)
            )
            before[measure][name], after[measure][name] = means(*one), means(*two)
            gain[measure][name] = mean_differences(two, one)
    return HeadGain(lens.depths[:-1], len(replies), before, after, gain)


def _values(result: ProbeResult, measure: str) -> NDArray[np.float64]:
    """A measure below full depth: (depths, tokens)."""
    values: NDArray[np.float64]
    if measure == "gap":
        values = result.entropy - result.entropy[-1]
    else:
        values = getattr(result, measure).astype(float)
    return values[:-1]
