"""Statistics of speech tokens against text tokens, by depth."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import fill
from typing import Any, ClassVar

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from eepolicy import Modality, ProbeResult
from eepolicy.analysis.stats.bootstrap import Intervals, means
from eepolicy.analysis.stats.clustered import as_columns, sums
from eepolicy.analysis.stats.tests import holm, paired_effect, sign_flip, superiority
from eepolicy.analysis.studies.base import Measure, Study, Workspace, by_name
from eepolicy.analysis.style import COLOURS, depth_axis, outside_legend
from eepolicy.analysis.tables import markdown_table


@dataclass(frozen=True)
class LayerMeasure(Measure):
    """A measure of a token at a depth.

    Attributes:
        trivial_at_full_depth: compares with the last layer, so that it is not tested there.
        drawn: whether the figure shows it.
    """

    trivial_at_full_depth: bool = False
    drawn: bool = True


MEASURES = (
    LayerMeasure("entropy", "entropy", "nats"),
    LayerMeasure("confidence", "probability of the most likely token"),
    LayerMeasure("margin", "margin to the second token"),
    LayerMeasure("agreement", "agreement with the last layer", trivial_at_full_depth=True),
    LayerMeasure("log_rank", "rank of the last layer's token", "log10", trivial_at_full_depth=True),
    LayerMeasure("kl", "KL from the last layer", "nats", trivial_at_full_depth=True),
    LayerMeasure("cosine_last", "cosine with the last hidden state", trivial_at_full_depth=True),
    LayerMeasure("cosine_previous", "cosine with the previous layer"),
    LayerMeasure(
        "norm_last",
        "norm relative to the last hidden state",
        trivial_at_full_depth=True,
        drawn=False,
    ),
)
MODALITIES = tuple(m.name.lower() for m in Modality)


@dataclass(frozen=True, eq=False)
class TokenStatistics(Study):
    """Speech and text by depth, and tests of their differences.

    Attributes:
        depths: probed depths, (depths,).
        documents: number of probed documents.
        tokens: modality -> number of tokens.
        levels: measure -> modality -> means over tokens, (depths,), intervals over documents.
        tests: one row for each measure and depth: `difference` (speech minus text, mean over
            documents), `effect` (Cohen's d, paired by document), `superiority` (probability that a
            speech token's value exceeds a text token's), `p` (sign-flip test by document), `p_holm`
            (adjusted for all rows).
        saturation: modality -> first depth from which the argmax stays the same, (tokens,).
    """

    depths: NDArray[np.int64]
    documents: int
    tokens: dict[str, int]
    levels: dict[str, dict[str, Intervals]]
    tests: pd.DataFrame
    saturation: dict[str, NDArray[np.int64]]

    name: ClassVar[str] = "layers"
    title: ClassVar[str] = "Speech against text, by layer"
    help: ClassVar[str] = "entropy, confidence, agreement and others of speech and text, by depth"

    @classmethod
    def run(cls, workspace: Workspace) -> TokenStatistics:
        """Compare speech and text in the probe of the full-depth replies."""
        return token_statistics(workspace.probed)

    def table(self, depths: tuple[int, ...] | None = None) -> str:
        """Markdown, one row for each measure and depth.

        Args:
            depths: depths to show; each quarter of full depth if None.
        """
        full = int(self.depths[-1])
        shown = depths or tuple(sorted({max(1, round(full * q / 4)) for q in (1, 2, 3, 4)}))
        headings = [
            *("measure", "depth", *MODALITIES),
            *("Cohen's d", "P(speech > text), %", "p (Holm)"),
        ]
        rows = [
            self._row(measure, depth)
            for measure in MEASURES
            for depth in shown
            if (measure.name, depth) in self.tests.index
        ]
        return markdown_table(headings, rows)

    def _row(self, measure: LayerMeasure, depth: int) -> list[str]:
        index = int(np.flatnonzero(self.depths == depth)[0])
        test = self.tests.loc[(measure.name, depth)]
        return [
            measure.heading,
            str(depth),
            *(measure.cell(self.levels[measure.name][m][index]) for m in MODALITIES),
            f"{test.effect:+.1f}",
            f"{100 * test.superiority:.0f}",
            _p(test.p_holm),
        ]

    def to_pandas(self) -> pd.DataFrame:
        """One row for each measure and depth: means, intervals and tests.

        Means over tokens are `text` and `speech`, their intervals `text_low`, `text_high` and so
        on; the columns of `tests` follow.
        """
        index = {int(depth): i for i, depth in enumerate(self.depths)}
        rows = [
            {"measure": measure, "depth": depth}
            | as_columns({m: level[index[depth]] for m, level in self.levels[measure].items()})
            for measure, depth in self.tests.index
        ]
        return pd.concat([pd.DataFrame(rows), self.tests.reset_index(drop=True)], axis=1)

    def figure(self) -> Figure:
        """Every measure by depth, bands 95 % intervals; and the saturation depths."""
        drawn = [m.name for m in MEASURES if m.drawn and m.name in self.levels]
        columns = 3
        rows = -(-(len(drawn) + 1) // columns)
        figure, axes = plt.subplots(
            rows, columns, figsize=(3.4 * columns, 2.5 * rows), layout="constrained"
        )
        for ax, measure in zip(axes.flat, drawn, strict=False):
            self.draw(ax, measure)
        self.draw_saturation(axes.flat[len(drawn)])
        for ax in axes.flat[len(drawn) + 1 :]:
            ax.set_axis_off()
        outside_legend(figure, axes.flat[0])
        return figure

    def draw(self, ax: Axes, measure: str) -> None:
        """Draw one measure by depth."""
        for modality in MODALITIES:
            level, colour = self.levels[measure][modality], COLOURS[modality]
            ax.fill_between(self.depths, level.low, level.high, color=colour, alpha=0.25, lw=0)
            ax.plot(self.depths, level.value, color=colour, label=modality)
        depth_axis(ax)
        ax.set_ylabel(fill(by_name(MEASURES, measure).heading, 24))

    def draw_saturation(self, ax: Axes) -> None:
        """Draw the share of tokens whose argmax no longer changes, by depth."""
        for modality, saturation in self.saturation.items():
            share = [(saturation <= d).mean() for d in self.depths]
            ax.plot(
                self.depths, share, color=COLOURS[modality], label=modality, drawstyle="steps-post"
            )
        depth_axis(ax)
        ax.set_ylabel("share of saturated tokens")


def token_statistics(result: ProbeResult) -> TokenStatistics:
    """Compare speech and text in a probe of replies.

    Args:
        result: probe with all statistics, of documents with both text and speech.
    """
    levels: dict[str, dict[str, Intervals]] = {}
    rows: list[dict[str, Any]] = []
    for measure in MEASURES:
        values = _values(result, measure.name)
        if values is None:
            continue
        levels[measure.name], by_document = _levels(result, values)
        difference = by_document["speech"] - by_document["text"]  # (documents, depths)
        tested = difference[:, :-1] if measure.trivial_at_full_depth else difference
        rows += _tests(result, measure.name, values, tested)
    tests = pd.DataFrame(rows).set_index(["measure", "depth"])
    tests["p_holm"] = holm(tests.p.to_numpy())
    return TokenStatistics(
        result.depths,
        len(np.unique(result.document)),
        {m.name.lower(): int((result.modality == m).sum()) for m in Modality},
        levels,
        tests,
        {m.name.lower(): result.saturation_depth[result.modality == m] for m in Modality},
    )


def _levels(
    result: ProbeResult, values: NDArray[np.float64]
) -> tuple[dict[str, Intervals], dict[str, NDArray[np.float64]]]:
    """Means of (depths, tokens) by modality: over all, (depths,), and (documents, depths)."""
    levels, by_document = {}, {}
    for modality in Modality:
        # a document without the modality stays in the resampling, with no value
        only = np.where(result.modality == modality, values, np.nan)
        totals, counts = sums(only, result.document)
        name = modality.name.lower()
        levels[name] = means(totals, counts)
        with np.errstate(invalid="ignore", divide="ignore"):
            by_document[name] = totals / counts
    return levels, by_document


def _tests(
    result: ProbeResult,
    measure: str,
    values: NDArray[np.float64],
    differences: NDArray[np.float64],
) -> list[dict[str, Any]]:
    """Rows of `TokenStatistics.tests` for one measure.

    Args:
        result: probe.
        measure: name.
        values: (depths, tokens).
        differences: speech minus text, (documents, tested depths).
    """
    effects, p = paired_effect(differences), sign_flip(differences)
    rows = []
    for i, depth in enumerate(result.depths[: differences.shape[1]]):
        text, speech = (values[i][(result.modality == m) & ~np.isnan(values[i])] for m in Modality)
        rows.append(
            {
                "measure": measure,
                "depth": int(depth),
                "difference": np.nanmean(differences[:, i]),
                "effect": effects[i],
                "superiority": superiority(speech, text),
                "p": p[i],
            }
        )
    return rows


def _values(result: ProbeResult, measure: str) -> NDArray[np.float64] | None:
    """A measure, (depths, tokens); None if the probe does not have it."""
    if measure == "agreement":
        return result.agreement.astype(float) if "top1" in result.columns else None
    if measure == "log_rank":
        return np.log10(result.rank_last) if "rank_last" in result.columns else None
    return np.asarray(getattr(result, measure), float) if measure in result.columns else None


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.0095 else f"{value:.4f}"
