"""Calibration of confidence: how often an exit agrees with the last layer, by its confidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from eepolicy import Modality, ProbeResult
from eepolicy.analysis.stats.bootstrap import PERCENTILES, Floats, Interval, resampled_weights
from eepolicy.analysis.stats.clustered import as_columns, sums
from eepolicy.analysis.stats.tests import superiority
from eepolicy.analysis.studies.base import Measure, Study, Workspace
from eepolicy.analysis.style import COLOURS, MARKERS, depth_axis, outside_legend
from eepolicy.analysis.tables import MISSING, markdown_table

BINS = 10
EXIT = 0.7  # depth of the reliability diagram, as a share of full depth
ECE = Measure("ece", "ECE", digits=3)
AUC = Measure("auc", "AUC", digits=3)


@dataclass(frozen=True, eq=False)
class Reliability(Study):
    """Confidence against agreement with the last layer, by modality.

    Attributes:
        depths: depths below full, (depths,).
        curves: modality -> mean confidence, agreement, and tokens of each bin, (depths, bins, 3).
        ece: modality -> expected calibration error of each depth: the mean distance of confidence
            and agreement over bins, weighted by their tokens.  Agreement is with the last layer's
            argmax, so a head that knew the last layer's distribution exactly would have `ideal`.
        ideal: modality -> calibration error of the last layer itself: one minus its mean
            confidence.
        auc: modality -> at each depth, the probability that a token that agrees has a higher
            confidence than one that does not (0.5: confidence is uninformative).
    """

    depths: NDArray[np.int64]
    curves: dict[str, Floats]
    ece: dict[str, list[Interval[float]]]
    ideal: dict[str, float]
    auc: dict[str, list[Interval[float]]]

    name: ClassVar[str] = "calibration"
    title: ClassVar[str] = "Calibration of confidence"
    help: ClassVar[str] = "calibration error, and AUC of confidence for agreement, by depth"

    @classmethod
    def run(cls, workspace: Workspace) -> Reliability:
        """Measure the probe of the full-depth replies."""
        return reliability(workspace.probed)

    def table(self) -> str:
        """Markdown, one row for each depth."""
        modalities = list(self.ece)
        headings = ["depth", *(f"{m}, {x.label}" for m in modalities for x in (ECE, AUC))]
        rows = [
            [
                str(depth),
                *(
                    cell
                    for m in modalities
                    for cell in (ECE.cell(self.ece[m][i]), AUC.cell(self.auc[m][i]))
                ),
            ]
            for i, depth in enumerate(self.depths)
        ]
        last = [cell for m in modalities for cell in (f"{self.ideal[m]:.{ECE.digits}f}", MISSING)]
        return markdown_table(headings, [*rows, ["the last layer itself", *last]])

    def to_pandas(self) -> pd.DataFrame:
        """One row for each modality and depth.

        Columns are `ece` and `auc`, each with `..._low` and `..._high`, and `ideal`.
        """
        rows = [
            {"modality": modality, "depth": int(depth)}
            | as_columns({"ece": self.ece[modality][i], "auc": self.auc[modality][i]})
            | {"ideal": self.ideal[modality]}
            for modality in self.ece
            for i, depth in enumerate(self.depths)
        ]
        return pd.DataFrame(rows)

    def figure(self, depth: int | None = None) -> Figure:
        """The reliability diagram of one depth, and ECE and AUC by depth.

        Args:
            depth: depth of the diagram; the one nearest to 0.7 of full depth if None.
        """
        if depth is None:
            wanted = EXIT * (self.depths[-1] + 1)
            depth = int(self.depths[np.abs(self.depths - wanted).argmin()])
        figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
        self.draw(axes[0], depth)
        for ax, by_modality, label in (
            (axes[1], self.ece, "calibration error\n(dotted: the last layer itself)"),
            (axes[2], self.auc, "AUC of confidence for agreement"),
        ):
            for modality, intervals in by_modality.items():
                low, value, high = np.array([(x.low, x.value, x.high) for x in intervals]).T
                ax.fill_between(self.depths, low, high, color=COLOURS[modality], alpha=0.25, lw=0)
                ax.plot(self.depths, value, color=COLOURS[modality], label=modality)
                if by_modality is self.ece:
                    ax.axhline(self.ideal[modality], color=COLOURS[modality], lw=0.8, ls=":")
            depth_axis(ax)
            ax.set_ylabel(label)
        outside_legend(figure, axes[1])
        return figure

    def draw(self, ax: Axes, depth: int) -> None:
        """Draw the reliability diagram of a depth; marker area grows with the share of tokens."""
        index = int(np.flatnonzero(self.depths == depth)[0])
        ax.plot([0, 1], [0, 1], color="#888888", lw=0.8, ls="--")
        for modality in self.curves:
            confidence, agreement, tokens = self.curves[modality][index].T
            filled = tokens > 0
            ax.plot(confidence[filled], agreement[filled], color=COLOURS[modality], lw=1)
            ax.scatter(
                confidence[filled],
                agreement[filled],
                s=8 + 150 * tokens[filled] / tokens.sum(),
                color=COLOURS[modality],
                marker=MARKERS[modality],
            )
        ax.set_xlabel(f"confidence at depth {depth}")
        ax.set_ylabel("agreement with the last layer,\nshare of tokens")


def reliability(result: ProbeResult, resamples: int = 200) -> Reliability:
    """Compare confidence with agreement at every depth below full.

    Args:
        result: probe with `top1` and `confidence`.
        resamples: number of resamples of documents for the intervals of the AUC.
    """
    curves, ece, ideal, auc = {}, {}, {}, {}
    depths = range(len(result.depths) - 1)
    for modality in Modality:
        chosen = result.modality == modality
        if not chosen.any():
            continue
        document = result.document[chosen]
        confidence = result.confidence[:-1, chosen].astype(float)  # (depths, tokens)
        agreement = result.agreement[:-1, chosen].astype(float)
        name = modality.name.lower()
        curves[name] = np.stack([_bins(confidence[i], agreement[i]) for i in depths])
        ece[name] = [_ece(confidence[i], agreement[i], document) for i in depths]
        ideal[name] = float(1 - result.confidence[-1, chosen].mean())
        auc[name] = [_auc(confidence[i], agreement[i] > 0, document, resamples) for i in depths]
    return Reliability(result.depths[:-1], curves, ece, ideal, auc)


def _bin_index(confidence: Floats) -> NDArray[np.int64]:
    """Bin of each confidence, of equal width."""
    index: NDArray[np.int64] = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return index


def _bins(confidence: Floats, agreement: Floats) -> Floats:
    """Mean confidence, mean agreement and number of tokens of each bin: (bins, 3)."""
    index = _bin_index(confidence)
    tokens = np.bincount(index, minlength=BINS)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(index, x, BINS) / tokens for x in (confidence, agreement)]
    return np.stack([*means, tokens.astype(float)], 1)


def _ece(confidence: Floats, agreement: Floats, document: NDArray[np.int64]) -> Interval[float]:
    """Expected calibration error, and its basic bootstrap interval over documents.

    Args:
        confidence: (tokens,).
        agreement: (tokens,).
        document: (tokens,).
    """
    member = np.eye(BINS)[_bin_index(confidence)].T  # (bins, tokens)
    gaps, _ = sums(member * (confidence - agreement), document)  # (documents, bins)
    tokens, _ = sums(member, document)
    drawn = resampled_weights(len(gaps), 0)
    value = np.abs(gaps.sum(0)).sum() / tokens.sum()
    resampled = np.abs(drawn @ gaps).sum(1) / (drawn @ tokens).sum(1)
    # a sum of distances is biased upwards, and more so resampled: the basic interval corrects it
    high, low = 2 * value - np.percentile(resampled, PERCENTILES)
    return Interval(float(value), max(0.0, float(low)), max(0.0, float(high)))


def _auc(
    confidence: Floats, agrees: NDArray[np.bool_], document: NDArray[np.int64], resamples: int
) -> Interval[float]:
    """AUC of confidence for agreement, and its interval over documents.

    Args:
        confidence: (tokens,).
        agrees: (tokens,).
        document: (tokens,).
        resamples: number of resamples.
    """
    value = superiority(confidence[agrees], confidence[~agrees])
    numbers, index = np.unique(document, return_inverse=True)
    members = [np.flatnonzero(index == i) for i in range(len(numbers))]
    rng = np.random.default_rng(0)
    resampled = []
    for _ in range(resamples):
        tokens = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        sample, agree = confidence[tokens], agrees[tokens]
        resampled.append(superiority(sample[agree], sample[~agree]))
    if np.isnan(resampled).all():
        return Interval(value, float("nan"), float("nan"))
    low, high = np.nanpercentile(resampled, PERCENTILES)
    return Interval(value, float(low), float(high))
