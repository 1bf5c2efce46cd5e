"""Pictures of a probe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eepolicy.errors import EepolicyError
from eepolicy.modality import Modality
from eepolicy.probing.statistics import MEDIANS, STATISTICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from eepolicy.probing.result import ProbeResult

#: text and speech: blue and vermilion of Okabe and Ito's palette, which the colour-blind tell apart
COLOURS = {Modality.TEXT: "#0072B2", Modality.SPEECH: "#D55E00"}
MARKERS = {Modality.TEXT: "o", Modality.SPEECH: "s"}
#: the likeliest tokens are written into the cells of so many tokens, where they have so few letters
WRITTEN, FITS = 40, 7
SHOWN = ("agreement", "entropy", "confidence", "kl")
LABELS = {"agreement": "agreement with the last layer, share of tokens"} | {
    name: what.split(",")[0] + (", nats" if what.endswith("nats") else "")
    for name, what in STATISTICS.items()
}


@dataclass(frozen=True)
class Plots:
    """Draws a probe.

    Args:
        result: that is drawn.
    """

    result: ProbeResult

    def layers(self, *statistics: str) -> Figure:
        """Statistics by depth: the median over tokens and the middle half of them, by modality.

        A share is drawn as a mean.

        Args:
            *statistics: names; agreement, entropy, confidence and KL where none are given.
        """
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        result = self.result
        names = statistics or tuple(n for n in SHOWN if self._has(n))
        self._check(names)
        columns = min(2, len(names))
        rows = -(-len(names) // columns)
        figure = Figure(figsize=(4.6 * columns, 3.1 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).flat
        for panel, name in zip(panels, names, strict=False):
            values = np.asarray(getattr(result, name), float)
            if name in MEDIANS:
                values = np.where(values < 0, np.nan, values)
            for modality in Modality:
                chosen = result.modality == modality
                if chosen.any():
                    self._line(panel, values[:, chosen], modality, share=name == "agreement")
            panel.set_xlabel("depth, layers")
            panel.set_ylabel(_wrapped(LABELS[name]))
            if name.startswith("rank"):
                panel.set_yscale("log")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            panel.spines[["top", "right"]].set_visible(False)
        for panel in list(panels):
            panel.set_axis_off()
        # a panel of medians says what its band is
        legend = next((i for i, name in enumerate(names) if name != "agreement"), 0)
        handles, labels = figure.axes[legend].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
        return figure

    def heatmap(self, statistic: str = "entropy", document: int | None = None) -> Figure:
        """A statistic at every depth (upward) of every token of one document (to the right).

        Each column is named by the token that follows; in a cell stands the likeliest token of its
        depth, where there is room.

        Args:
            statistic: its name.
            document: its number; the first one where none is given.
        """
        from matplotlib.figure import Figure

        self._check((statistic,))
        numbers = np.unique(self.result.document)
        chosen = numbers[0] if document is None else document
        if chosen not in numbers:
            raise EepolicyError(f"the probe has no document {document}")
        result = self.result[self.result.document == chosen]
        values = np.asarray(getattr(result, statistic), float)
        width = min(24.0, 2.4 + 0.30 * len(result))
        figure = Figure(figsize=(width, 1.6 + 0.19 * len(result.depths)), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(values, aspect="auto", origin="lower", cmap="cividis")
        every = -(-len(result) // 80)
        axes.set_xticks(range(0, len(result), every), result.words[::every], rotation=90)
        axes.tick_params(axis="x", labelsize=7)
        for place in range(0, len(result), every):
            label = axes.get_xticklabels()[place // every]
            label.set_color(COLOURS[Modality(result.modality[place])])
        some = np.unique(np.linspace(0, len(result.depths) - 1, 8).round().astype(int))
        axes.set_yticks(some, result.depths[some])
        axes.set_ylabel("depth, layers")
        axes.set_xlabel(_names(result))
        figure.colorbar(image, label=_wrapped(LABELS[statistic]), pad=0.01)
        if len(result) <= WRITTEN and self._has("agreement"):
            self._write(axes, result, values)
        return figure

    def _write(self, axes: Axes, result: ProbeResult, values: NDArray[Any]) -> None:
        """Write the likeliest tokens into the cells, where they are short."""
        middle = (np.nanmin(values) + np.nanmax(values)) / 2
        for row, ids in enumerate(result.top1):
            for column, word in enumerate(result.named(ids)):
                if len(word) <= FITS:
                    axes.text(
                        column,
                        row,
                        word,
                        ha="center",
                        va="center",
                        fontsize=5.5,
                        color="white" if values[row, column] < middle else "black",
                    )

    def _line(self, panel: Axes, values: NDArray[Any], modality: Modality, share: bool) -> None:
        middle = np.nanmean(values, 1) if share else np.nanmedian(values, 1)
        colour = COLOURS[modality]
        panel.plot(
            self.result.depths,
            middle,
            color=colour,
            marker=MARKERS[modality],
            markersize=3.5,
            label=modality.name.lower() + ("" if share else " (median, middle half)"),
        )
        if not share:
            low, high = np.nanquantile(values, [0.25, 0.75], axis=1)
            panel.fill_between(self.result.depths, low, high, color=colour, alpha=0.2, lw=0)

    def _has(self, name: str) -> bool:
        return (name if name != "agreement" else "top1") in self.result.columns

    def _check(self, names: tuple[str, ...]) -> None:
        there = [n for n in LABELS if n != "top1" and self._has(n)]
        if not names or not {*names} <= {*there}:
            raise EepolicyError(
                f"this probe can draw {', '.join(there)}; got {', '.join(names) or 'nothing'}"
            )


def _wrapped(label: str) -> str:
    from textwrap import fill

    return fill(label, 32)


def _names(result: ProbeResult) -> str:
    present = [m for m in Modality if (result.modality == m).any()]
    colours = {Modality.TEXT: "blue", Modality.SPEECH: "orange"}
    return (
        "token that follows (" + ", ".join(f"{m.name.lower()} {colours[m]}" for m in present) + ")"
    )
