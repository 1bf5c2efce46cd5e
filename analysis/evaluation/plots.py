"""Figures of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from eepolicy.analysis.evaluation.columns import COLUMNS, Column, is_measured
from eepolicy.analysis.evaluation.records import Record
from eepolicy.analysis.style import COLOURS, families, plain_legend
from eepolicy.errors import EepolicyError
from eepolicy.io import write_atomically
from eepolicy.modality import Modality

#: rows of `Comparison.table`
Rows = Sequence[Mapping[str, Any]]

#: layers by which markers at about the same speech depth are shifted, so that error bars do not
#: overlap
SHIFT = 0.12
#: difference of speech depths, in layers, below which markers overlap
SAME_DEPTH = 0.7
#: line, marker and its size of each kind of head in the figure of agreement
HEAD_STYLES = {
    "fitted heads": ("-", "o", 3),
    "branches": ("none", "*", 9),
    "plain logit lens": (":", "", 3),
}
#: letters of the smallest size that fit over the width of the depth figure
MAX_LETTERS = 100


def quality_against_cost(rows: Rows, quality: Column, cost: Column, ax: Axes) -> None:
    """Draw a quality of every policy against a cost, with 95 % intervals and the Pareto front.

    Markers at about the same speech depth are shifted by `SHIFT` each.

    Args:
        rows: rows of `Comparison.table`.
        quality: column of the quality.
        cost: column of the cost.
        ax: axes to draw on.
    """
    drawn = [r for r in rows if r[quality.name] is not None and r[cost.name] is not None]
    shifts = [0.0] * len(drawn)
    if cost.name == "speech_depth":
        shifts = _shifts([row[cost.name] for row in drawn])
    styles = families([row["policy"] for row in drawn])
    for row, (colour, marker), shift in zip(drawn, styles, shifts, strict=True):
        ax.errorbar(
            cost.scale * row[cost.name] + shift,
            quality.scale * row[quality.name],
            yerr=_errors(row, quality),
            xerr=_errors(row, cost),
            fmt=marker,
            color=colour,
            markersize=7,
            elinewidth=1,
            label=row["policy"],
        )
    front = pareto(
        [row[cost.name] for row in drawn],
        [row[quality.name] for row in drawn],
        higher=quality.better == "higher",
    )
    ax.plot(
        [cost.scale * drawn[i][cost.name] + shifts[i] for i in front],
        [quality.scale * drawn[i][quality.name] for i in front],
        color="#999999",
        lw=0.8,
        ls=":",
        zorder=0,
    )
    ax.set_xlabel(cost.label)
    ax.set_ylabel(f"{quality.label}\n{quality.better} is better")


def _shifts(depths: Sequence[float]) -> list[float]:
    """Shifts that separate markers at about the same depth; 0 for a marker by itself."""
    near = [
        [j for j, other in enumerate(depths) if abs(other - own) < SAME_DEPTH] for own in depths
    ]
    return [SHIFT * (group.index(i) - (len(group) - 1) / 2) for i, group in enumerate(near)]


def _errors(row: Mapping[str, Any], column: Column) -> NDArray[np.float64]:
    """Lengths of the error bar below and above the estimate: (2, 1)."""
    value, low, high = (row[f"{column.name}{end}"] for end in ("", "_low", "_high"))
    lengths = np.array([[value - low], [high - value]])
    return np.clip(column.scale * lengths, 0, None)


def summary_figure(rows: Rows, margin: float) -> Figure:
    """Draw the difference in WER from full depth against the speed-up, with 95 % intervals.

    Args:
        rows: rows of `Comparison.table` with `wer` and `speedup`, full depth first.
        margin: points of WER that a policy may lose as "not worse".
    """
    figure, ax = plt.subplots(figsize=(8, 4))
    label = f"margin of ±{margin:g} points"
    ax.axhspan(-margin, margin, color="#dddddd", zorder=0, label=label)
    for row, (colour, marker) in zip(rows, families([r["policy"] for r in rows]), strict=True):
        values = {
            name: [scale * (row[f"{name}{end}"] or 0.0) for end in ("", "_low", "_high")]
            for name, scale in (("wer_diff", 100.0), ("speedup", 1.0))
        }
        bars = {
            name: [[value - low], [high - value]] for name, (value, low, high) in values.items()
        }
        ax.errorbar(
            values["speedup"][0],
            values["wer_diff"][0],
            xerr=np.clip(bars["speedup"], 0, None),
            yerr=np.clip(bars["wer_diff"], 0, None),
            fmt=marker,
            color=colour,
            markersize=8,
            elinewidth=1,
            label=row["policy"],
        )
    ax.set_xlabel("speed-up over full depth, ×")
    ax.set_ylabel("word error rate minus that\nof full depth, points (lower is better)")
    legend = ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False)
    plain_legend(legend)
    figure.tight_layout()
    return figure


def pareto(costs: Sequence[float], values: Sequence[float], higher: bool) -> list[int]:
    """Find the Pareto front: the items that no other item beats in both cost and value.

    Args:
        costs: cost of each item; lower is better.
        values: value of each item.
        higher: whether a higher value is better, otherwise a lower one.

    Returns:
        Indices of the items in ascending order of cost.

    Examples:
        >>> from eepolicy.analysis.evaluation.plots import pareto
        >>> pareto([3, 1, 2], [0.9, 0.5, 0.4], higher=True)
        [1, 0]
    """
    worth = [v if higher else -v for v in values]
    front: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -worth[i])):
        if not front or worth[i] > worth[front[-1]]:
            front.append(i)
    return front


def quality_columns(rows: Rows, columns: Sequence[Column] = COLUMNS) -> list[Column]:
    """List the columns of a quality that was measured.

    Args:
        rows: rows of `Comparison.table`.
        columns: columns of the comparison.
    """
    return [c for c in columns if c.plot == "quality" and is_measured(rows, c)]


def quality_figure(rows: Rows, columns: Sequence[Column] = COLUMNS) -> Figure:
    """Draw every measured quality against every cost.

    Args:
        rows: rows of `Comparison.table`.
        columns: columns of the comparison.

    Raises:
        EepolicyError: no quality was measured.
    """
    qualities = quality_columns(rows, columns)
    if not qualities:
        raise EepolicyError(
            "no quality was measured: there is no transcript, no judge, and no right answer"
        )
    costs = [c for c in columns if c.plot == "cost" and is_measured(rows, c)]
    figure, axes = plt.subplots(
        len(costs),
        len(qualities),
        figsize=(3.2 * len(qualities), 2.8 * len(costs)),
        squeeze=False,
    )
    for i, cost in enumerate(costs):
        for j, quality in enumerate(qualities):
            quality_against_cost(rows, quality, cost, axes[i, j])
    handles = {
        label: handle
        for ax in axes[0]
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    figure.tight_layout()
    legend = figure.legend(
        handles.values(),
        handles.keys(),
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        ncols=min(4, len(handles)),
        fontsize=8,
    )
    plain_legend(legend)
    return figure


def agreement_figure(
    curves: Mapping[str, Mapping[str, NDArray[np.float64]]], prompts: int
) -> Figure:
    """Draw the agreement with the last layer by depth, with a style per head.

    Args:
        curves: by head and modality: (full depth,) shares, nan at a depth without such a head.
        prompts: number of replies they were measured on.
    """
    figure, ax = plt.subplots(figsize=(6.4, 3.2))
    for head, by_modality in curves.items():
        line, marker, size = HEAD_STYLES[head]
        for modality, curve in by_modality.items():
            depths = np.flatnonzero(~np.isnan(curve))
            ax.plot(
                1 + depths,
                100 * curve[depths],
                linestyle=line,
                color=COLOURS[modality],
                marker=marker,
                markersize=size,
                label=f"{modality}, {head}",
            )
    ax.set_xlabel("depth, layers")
    ax.set_ylabel("same top-1 token as\nthe last layer, %")
    ax.set_xticks([1, *range(5, len(next(iter(next(iter(curves.values())).values()))) + 1, 5)])
    ax.set_ylim(0, 102)
    ax.legend(
        fontsize=8,
        loc="upper left",
        bbox_to_anchor=(1.02, 1),
        title=f"{prompts} held-out replies",
        title_fontsize=8,
    )
    figure.tight_layout()
    return figure


def depth_figure(
    records: Sequence[Record], words: Sequence[Sequence[str]], full_depth: int
) -> Figure:
    """Draw the depth of each token of the replies to one question, with a panel per policy.

    Args:
        records: records of one question.
        words: by record: label of each token; empty for speech.  A stretch of text has one label
            with its words, as many as there is room for.
        full_depth: number of layers of the model.
    """
    longest = max(len(r.tokens) for r in records)
    figure, axes = plt.subplots(
        len(records), 1, figsize=(8, 1.25 * len(records) + 0.5), sharex=True, squeeze=False
    )
    for ax, record, labels in zip(axes[:, 0], records, words, strict=True):
        for modality in Modality:
            positions = [i for i, m in enumerate(record.modalities) if m == modality]
            ax.bar(
                positions,
                [record.depths[i] for i in positions],
                width=0.85,
                color=COLOURS[modality.name.lower()],
                label=modality.name.lower(),
            )
        for start, label in _stretch_labels(labels, longest):
            ax.text(start, full_depth + 0.6, label, fontsize=6, va="bottom", parse_math=False)
        ax.set_ylim(0, full_depth)
        ax.set_yticks([0, full_depth // 2, full_depth])
        ax.set_xlim(-1, longest)
        ax.text(
            1.01,
            0.5,
            record.policy,
            transform=ax.transAxes,
            fontsize=8,
            va="center",
            parse_math=False,
        )
    axes[len(records) // 2, 0].set_ylabel("depth, layers")
    axes[-1, 0].set_xlabel("token of the reply")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.tight_layout(h_pad=1.6)
    figure.legend(handles, labels, loc="upper center", ncols=2, fontsize=8, bbox_to_anchor=(0.5, 0))
    return figure


def _stretch_labels(words: Sequence[str], longest: int) -> list[tuple[int, str]]:
    """Place of each stretch of text and its words, cut where the next stretch begins.

    Args:
        words: text of each token; empty for speech.
        longest: number of tokens over the width of the figure.
    """
    starts = [i for i, word in enumerate(words) if word and not (i and words[i - 1])]
    labels = []
    for start, stop in zip(starts, [*starts[1:], longest], strict=True):
        text = " ".join(word for word in words[start:stop] if word)
        room = int(MAX_LETTERS * (stop - start) / longest)
        labels.append((start, text if len(text) <= room else f"{text[: max(room - 1, 0)]}…"))
    return labels


def save(figure: Figure, folder: Path, name: str) -> str:
    """Write a figure as PNG, SVG and PDF, and close it; returns the name of the PNG file."""
    for kind in ("png", "svg", "pdf"):
        save = partial(figure.savefig, format=kind)
        write_atomically(folder / f"{name}.{kind}", save)
    plt.close(figure)
    return f"{name}.png"
