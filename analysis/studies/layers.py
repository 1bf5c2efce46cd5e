"""Speech against text, by depth: what the layers know of the one and of the other."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from eepolicy import Modality, ProbeResult
from eepolicy.analysis.stats.clustered import Intervals, as_columns, means, sums
from eepolicy.analysis.stats.tests import holm, paired_effect, sign_flip, superiority
from eepolicy.analysis.style import COLOURS, depth_axis

#: what is compared: how it is called on an axis
MEASURES = {
    "entropy": "entropy, nats",
    "confidence": "probability of the likeliest token",
    "margin": "margin to the second token",
    "agreement": "agreement with the last layer",
    "log_rank": "rank of the last layer's token, log10",
    "kl": "KL from the last layer, nats",
    "cosine_last": "cosine with the last hidden state",
    "cosine_previous": "cosine with the layer before",
    "norm_last": "norm against the last hidden state",
}
#: what is the same at full depth by definition, and not tested there
AGAINST_LAST = ("agreement", "log_rank", "kl", "cosine_last", "norm_last")
#: in the table alone
UNDRAWN = ("norm_last",)
MODALITIES = tuple(m.name.lower() for m in Modality)


@dataclass(frozen=True, eq=False)
class TokenStatistics:
    """Speech and text by depth, and what lies between them.

    Attributes:
        depths: (depths,).
        documents: how many were probed.
        tokens: of each modality.
        levels: measure: modality: means over tokens, (depths,), intervals over documents.
        tests: a row a measure and depth: `difference` (speech less text, mean over documents),
            `effect` (Cohen's d, paired by document), `superiority` (how often a speech token's
            value is above a text token's), `p` (sign-flip test by document), `p_holm` (adjusted
            for all rows).
        saturation: modality: (tokens,) depth from where on the likeliest token stays.
    """

    depths: NDArray[np.int64]
    documents: int
    tokens: dict[str, int]
    levels: dict[str, dict[str, Intervals]]
    tests: pd.DataFrame
    saturation: dict[str, NDArray[np.int64]]

    def table(self, depths: tuple[int, ...] | None = None) -> str:
        """Markdown, a line a measure and depth.

        Args:
            depths: that are shown; about each quarter where none are given.
        """
        full = int(self.depths[-1])
        shown = depths or tuple(sorted({max(1, round(full * q / 4)) for q in (1, 2, 3, 4)}))
        lines = [
            "| measure | depth | text | speech | effect, d | speech above text, % | p, Holm |",
            "|---|---|---|---|---|---|---|",
        ]
        for measure, label in MEASURES.items():
            if measure not in self.levels:
                continue
            for depth in shown:
                place = int(np.flatnonzero(self.depths == depth)[0])
                if (measure, depth) not in self.tests.index:
                    continue
                row = self.tests.loc[(measure, depth)]
                text, speech = (self.levels[measure][m].text(place) for m in MODALITIES)
                lines.append(
                    f"| {label} | {depth} | {text} | {speech} | {row.effect:+.1f} | "
                    f"{100 * row.superiority:.0f} | {_p(row.p_holm)} |"
                )
        return "\n".join(lines)

    def to_pandas(self) -> pd.DataFrame:
        """`tests` behind what they compare: a row a measure and depth.

        Means over tokens are `text` and `speech`, their intervals `text_low`, `text_high` ...
        """
        place = {int(depth): i for i, depth in enumerate(self.depths)}
        rows = [
            {"measure": measure, "depth": depth}
            | as_columns({m: found[place[depth]] for m, found in self.levels[measure].items()})
            for measure, depth in self.tests.index
        ]
        return pd.concat([pd.DataFrame(rows), self.tests.reset_index(drop=True)], axis=1)

    def figure(self) -> Figure:
        """Every measure by depth, bands 95 % intervals; and the saturation depths."""
        names = [m for m in MEASURES if m in self.levels and m not in UNDRAWN]
        count = len(names) + 1
        columns = 3
        rows = -(-count // columns)
        figure, axes = plt.subplots(
            rows, columns, figsize=(3.4 * columns, 2.5 * rows), layout="constrained"
        )
        for ax, measure in zip(axes.flat, names, strict=False):
            self.draw(ax, measure)
        self.draw_saturation(axes.flat[len(names)])
        for ax in axes.flat[count:]:
            ax.set_axis_off()
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
        return figure

    def draw(self, ax: Axes, measure: str) -> None:
        """One measure by depth."""
        for modality in MODALITIES:
            found = self.levels[measure][modality]
            ax.fill_between(
                self.depths, found.low, found.high, color=COLOURS[modality], alpha=0.25, lw=0
            )
            ax.plot(self.depths, found.value, color=COLOURS[modality], label=modality)
        depth_axis(ax)
        ax.set_ylabel(fill(MEASURES[measure], 24))

    def draw_saturation(self, ax: Axes) -> None:
        """Share of tokens whose likeliest token stays from a depth on."""
        for modality, found in self.saturation.items():
            share = [(found <= d).mean() for d in self.depths]
            ax.plot(
                self.depths, share, color=COLOURS[modality], label=modality, drawstyle="steps-post"
            )
        depth_axis(ax)
        ax.set_ylabel("share of tokens\nthat have settled")


def token_statistics(result: ProbeResult) -> TokenStatistics:
    """Compare speech and text in a probe of replies that hold both.

    Args:
        result: with all statistics, of documents that have text and speech.
    """
    levels: dict[str, dict[str, Intervals]] = {}
    rows = []
    for measure in MEASURES:
        values = _values(result, measure)
        if values is None:
            continue
        levels[measure], by_document = {}, {}
        for modality in Modality:
            # every document has its place, those without the modality with nothing in it
            only = np.where(result.modality == modality, values, np.nan)
            totals, counts = sums(only, result.document)
            name = modality.name.lower()
            levels[measure][name] = means(totals, counts)
            with np.errstate(invalid="ignore", divide="ignore"):
                by_document[name] = totals / counts
        difference = by_document["speech"] - by_document["text"]  # (documents, depths)
        tested = difference[:, :-1] if measure in AGAINST_LAST else difference
        effects, p = paired_effect(tested), sign_flip(tested)
        for i, depth in enumerate(result.depths[: tested.shape[1]]):
            text, speech = (
                values[i][(result.modality == m) & ~np.isnan(values[i])] for m in Modality
            )
            rows.append(
                {
                    "measure": measure,
                    "depth": int(depth),
                    "difference": np.nanmean(tested[:, i]),
                    "effect": effects[i],
                    "superiority": superiority(speech, text),
                    "p": p[i],
                }
            )
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


def place_figure(result: ProbeResult, depth: int, places: dict[str, int]) -> Figure:
    """Entropy at full depth, and agreement of one depth with it, by place in the chunk.

    Args:
        result: with `entropy` and `top1`.
        depth: of the agreement.
        places: modality: how many places of a chunk are drawn; the last chunk of a reply runs on.
    """
    figure, axes = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained")
    index = int(np.flatnonzero(result.depths == depth)[0])
    drawn = (
        (axes[0], result.entropy[-1], "entropy at full depth, nats"),
        (axes[1], result.agreement[index], f"agreement of depth {depth}"),
    )
    for ax, values, label in drawn:
        for modality, count in places.items():
            found = by_place(result, values, modality, count)
            at = np.arange(count)
            bars = np.clip([found.value - found.low, found.high - found.value], 0, None)
            ax.errorbar(
                at,
                found.value,
                yerr=bars,
                color=COLOURS[modality],
                marker="o",
                ms=3,
                label=modality,
            )
        ax.set_xlabel("place in the chunk")
        ax.set_ylabel(label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def by_place(
    result: ProbeResult, values: NDArray[np.float64], modality: str, count: int
) -> Intervals:
    """Means of a value (tokens,) over the tokens at each place of a chunk: (count,)."""
    chosen = result.modality == Modality[modality.upper()]
    at = result.phase == np.arange(count)[:, None]  # (places, tokens)
    return means(*sums(np.where(at & chosen, values, np.nan), result.document))


def _values(result: ProbeResult, measure: str) -> NDArray[np.float64] | None:
    """A measure, (depths, tokens); None where the probe does not hold it."""
    if measure == "agreement":
        return result.agreement.astype(float) if "top1" in result.columns else None
    if measure == "log_rank":
        return np.log10(result.rank_last) if "rank_last" in result.columns else None
    return np.asarray(getattr(result, measure), float) if measure in result.columns else None


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.0095 else f"{value:.4f}"
