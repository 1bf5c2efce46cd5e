"""Does confidence serve?  How often an exit agrees with the last layer, by how sure it is."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from eepolicy import Modality, ProbeResult
from eepolicy.analysis.stats.bootstrap import Interval, resampled_weights
from eepolicy.analysis.stats.clustered import as_columns, sums
from eepolicy.analysis.stats.tests import superiority
from eepolicy.analysis.style import COLOURS, depth_axis

BINS = 10


@dataclass(frozen=True, eq=False)
class Reliability:
    """Confidence against agreement with the last layer, by modality.

    Attributes:
        depths: (depths,) below full.
        curves: modality: (depths, bins, 3): mean confidence, agreement, and tokens of a bin.
        ece: modality: at each depth, the mean distance of confidence and agreement over bins,
            weighted by their tokens.  It is held against the last layer's *likeliest* token: a head
            that knew the last layer's distribution exactly would have `ideal`.
        ideal: modality: what the last layer itself has, one less its mean confidence.
        auc: modality: at each depth, how often a token that agrees has a higher confidence than one
            that does not (0.5: confidence tells nothing).
    """

    depths: NDArray[np.int64]
    curves: dict[str, NDArray[np.float64]]
    ece: dict[str, list[Interval]]
    ideal: dict[str, float]
    auc: dict[str, list[Interval]]

    def table(self) -> str:
        """Markdown, a line a depth."""
        names = list(self.ece)
        lines = [
            "| depth | " + " | ".join(f"{n}, ECE | {n}, AUC" for n in names) + " |",
            "|---" * (1 + 2 * len(names)) + "|",
        ]
        for i, depth in enumerate(self.depths):
            cells = [
                f"{x.value:.3f} [{x.low:.3f}, {x.high:.3f}]"
                for n in names
                for x in (self.ece[n][i], self.auc[n][i])
            ]
            lines.append(f"| {depth} | " + " | ".join(cells) + " |")
        last = [cell for n in names for cell in (f"{self.ideal[n]:.3f}", "–")]
        lines.append("| the last layer itself | " + " | ".join(last) + " |")
        return "\n".join(lines)

    def to_pandas(self) -> pd.DataFrame:
        """A row a modality and depth: `ece`, `ece_low`, `ece_high`, `auc` alike, and `ideal`."""
        rows = [
            {"modality": name, "depth": int(depth)}
            | as_columns({"ece": self.ece[name][i], "auc": self.auc[name][i]})
            | {"ideal": self.ideal[name]}
            for name in self.ece
            for i, depth in enumerate(self.depths)
        ]
        return pd.DataFrame(rows)

    def figure(self, depth: int) -> Figure:
        """The reliability diagram of a depth, and both errors by depth."""
        figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
        self.draw(axes[0], depth)
        for ax, found, label in (
            (axes[1], self.ece, "calibration error\n(dotted: the last layer itself)"),
            (axes[2], self.auc, "AUC of confidence for agreement"),
        ):
            for modality, values in found.items():
                low, value, high = np.array([(x.low, x.value, x.high) for x in values]).T
                ax.fill_between(self.depths, low, high, color=COLOURS[modality], alpha=0.25, lw=0)
                ax.plot(self.depths, value, color=COLOURS[modality], label=modality)
                if found is self.ece:
                    ax.axhline(self.ideal[modality], color=COLOURS[modality], lw=0.8, ls=":")
            depth_axis(ax)
            ax.set_ylabel(label)
        handles, labels = axes[1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
        return figure

    def draw(self, ax: Axes, depth: int) -> None:
        """The reliability diagram of a depth; marks as large as their share of the tokens."""
        place = int(np.flatnonzero(self.depths == depth)[0])
        ax.plot([0, 1], [0, 1], color="#888888", lw=0.8, ls="--")
        for modality, marker in zip(self.curves, "os", strict=False):
            sure, agree, tokens = self.curves[modality][place].T
            held = tokens > 0
            ax.plot(sure[held], agree[held], color=COLOURS[modality], lw=1)
            sizes = 8 + 150 * tokens[held] / tokens.sum()
            ax.scatter(sure[held], agree[held], s=sizes, color=COLOURS[modality], marker=marker)
        ax.set_xlabel(f"confidence at depth {depth}")
        ax.set_ylabel("agreement with the last layer")


def reliability(result: ProbeResult, resamples: int = 200) -> Reliability:
    """Hold confidence against agreement at every depth below full.

    Args:
        result: with `top1` and `confidence`.
        resamples: of the documents, for the intervals of the AUC.
    """
    curves, ece, ideal, auc = {}, {}, {}, {}
    depths = range(len(result.depths) - 1)
    for modality in Modality:
        chosen = result.modality == modality
        if not chosen.any():
            continue
        document = result.document[chosen]
        sure = result.confidence[:-1, chosen].astype(float)
        agree = result.agreement[:-1, chosen].astype(float)
        name = modality.name.lower()
        curves[name] = np.stack([_bins(sure[i], agree[i]) for i in depths])
        ece[name] = [_ece(sure[i], agree[i], document) for i in depths]
        ideal[name] = float(1 - result.confidence[-1, chosen].mean())
        auc[name] = [_auc(sure[i], agree[i] > 0, document, resamples) for i in depths]
    return Reliability(result.depths[:-1], curves, ece, ideal, auc)


def _place(sure: NDArray[np.float64]) -> NDArray[np.int64]:
    """Bin of each confidence, of equal width."""
    places: NDArray[np.int64] = np.minimum((sure * BINS).astype(int), BINS - 1)
    return places


def _bins(sure: NDArray[np.float64], agree: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean confidence, agreement and tokens: (bins, 3)."""
    places = _place(sure)
    tokens = np.bincount(places, minlength=BINS)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(places, x, BINS) / tokens for x in (sure, agree)]
    return np.stack([*means, tokens.astype(float)], 1)


def _ece(
    sure: NDArray[np.float64], agree: NDArray[np.float64], document: NDArray[np.int64]
) -> Interval:
    """Calibration error and its interval over documents."""
    inside = np.eye(BINS)[_place(sure)].T  # (bins, tokens)
    gaps, _ = sums(inside * (sure - agree), document)  # (documents, bins)
    tokens, _ = sums(inside, document)
    drawn = resampled_weights(len(gaps), 0)
    value = np.abs(gaps.sum(0)).sum() / tokens.sum()
    resampled = np.abs(drawn @ gaps).sum(1) / (drawn @ tokens).sum(1)
    # a sum of distances is too high, and resampled too high again: the basic interval turns it back
    high, low = 2 * value - np.percentile(resampled, [2.5, 97.5])
    return Interval(float(value), max(0.0, float(low)), max(0.0, float(high)))


def _auc(
    sure: NDArray[np.float64],
    agree: NDArray[np.bool_],
    document: NDArray[np.int64],
    resamples: int,
) -> Interval:
    """How well confidence tells agreement, and its interval over documents."""
    value = superiority(sure[agree], sure[~agree])
    numbers, places = np.unique(document, return_inverse=True)
    members = [np.flatnonzero(places == i) for i in range(len(numbers))]
    rng = np.random.default_rng(0)
    found = []
    for _ in range(resamples):
        tokens = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        found.append(superiority(sure[tokens][agree[tokens]], sure[tokens][~agree[tokens]]))
    if np.isnan(found).all():
        return Interval(value, float("nan"), float("nan"))
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return Interval(value, float(low), float(high))
