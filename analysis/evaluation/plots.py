"""The figures of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from eepolicy.analysis.evaluation.records import Record
from eepolicy.analysis.style import COLOURS, family
from eepolicy.errors import EepolicyError
from eepolicy.modality import Modality

Rows = Sequence[Mapping[str, Any]]

QUALITIES = {
    "wer": ("word error rate (%)", 100.0, "lower is better"),
    "accuracy_speech": ("right in the speech (%)", 100.0, "higher is better"),
    "accuracy_text": ("right in the text (%)", 100.0, "higher is better"),
    "judged": ("judge's verdict (%)", 100.0, "higher is better"),
    "mos": ("estimated MOS (1 to 5)", 1.0, "higher is better"),
}
COSTS = {"speech_depth": "mean speech depth (layers)", "seconds": "seconds a reply"}

#: layers by which marks at about the same depth are moved apart, so that their bars can be told
SPREAD = 0.12


def quality_against_cost(rows: Rows, quality: str, cost: str, ax: Axes) -> None:
    """One quality of every policy against what it cost, with 95 % intervals.

    Args:
        rows: of `eepolicy.analysis.evaluation.run.table`.
        quality: a key of `QUALITIES`.
        cost: a key of `COSTS`; marks against depth are moved apart by `SPREAD` each.  Dotted: what
            nothing else beats in both.
        ax: to draw on.
    """
    label, scale, direction = QUALITIES[quality]
    drawn = [r for r in rows if r[quality] is not None and r[cost] is not None]
    looks = [family(r["policy"]) for r in drawn]
    for i, (row, look) in enumerate(zip(drawn, looks, strict=True)):
        colour, marker = look
        value, at = scale * row[quality], row[cost]
        high = [[value - scale * row[f"{quality}_low"]], [scale * row[f"{quality}_high"] - value]]
        wide = [[at - row[f"{cost}_low"]], [row[f"{cost}_high"] - at]]
        ax.errorbar(
            at + (SPREAD * (i - (len(drawn) - 1) / 2) if cost == "speech_depth" else 0.0),
            value,
            yerr=np.clip(high, 0, None),
            xerr=np.clip(wide, 0, None),
            fmt=marker,
            color=colour,
            # a second policy of the same kind has open marks
            markerfacecolor="white" if look in looks[:i] else colour,
            markersize=7,
            elinewidth=1,
            label=row["policy"],
        )
    front = pareto([r[cost] for r in drawn], [r[quality] for r in drawn], "higher" in direction)
    middle = (len(drawn) - 1) / 2
    moved = [SPREAD * (i - middle) if cost == "speech_depth" else 0.0 for i in front]
    ax.plot(
        [drawn[i][cost] + by for i, by in zip(front, moved, strict=True)],
        [scale * drawn[i][quality] for i in front],
        color="#999999",
        lw=0.8,
        ls=":",
        zorder=0,
    )
    ax.set_xlabel(COSTS[cost])
    ax.set_ylabel(f"{label}\n{direction}")


def pareto(costs: Sequence[float], values: Sequence[float], higher: bool) -> list[int]:
    """Places of what nothing else beats in cost and value both, by rising cost.

    Args:
        costs: lower is better.
        values: of the same things.
        higher: whether a higher value is better, else a lower one.
    """
    worth = [v if higher else -v for v in values]
    front: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -worth[i])):
        if not front or worth[i] > worth[front[-1]]:
            front.append(i)
    return front


def qualities(rows: Rows) -> list[str]:
    """The qualities that were measured, keys of `QUALITIES`."""
    return [q for q in QUALITIES if any(r.get(q) is not None for r in rows)]


def quality_figure(rows: Rows) -> Figure:
    """Every quality that was measured, against speech depth and against seconds.

    Raises:
        EepolicyError: none was.
    """
    measured = qualities(rows)
    if not measured:
        raise EepolicyError("no quality was measured: nothing was heard, judged, or has an answer")
    figure, axes = plt.subplots(
        len(COSTS), len(measured), figsize=(3.2 * len(measured), 5.6), squeeze=False
    )
    for column, quality in enumerate(measured):
        for line, cost in enumerate(COSTS):
            quality_against_cost(rows, quality, cost, axes[line, column])
    named = {
        label: handle
        for ax in axes[0]
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    figure.tight_layout()
    figure.legend(
        named.values(),
        named.keys(),
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        ncols=min(4, len(named)),
        fontsize=8,
    )
    return figure


def agreement_figure(
    curves: Mapping[str, Mapping[str, NDArray[np.float64]]], prompts: int
) -> Figure:
    """Agreement with the last layer by depth, text and speech, one line style a head.

    Args:
        curves: head: modality: (depths,), shares.
        prompts: they were measured on.
    """
    figure, ax = plt.subplots(figsize=(4.6, 3.2))
    for (head, by_modality), line in zip(curves.items(), ("-", ":"), strict=False):
        for modality, curve in by_modality.items():
            ax.plot(
                np.arange(1, len(curve) + 1),
                100 * curve,
                line,
                color=COLOURS[modality],
                marker="o" if line == "-" else None,
                markersize=3,
                label=f"{modality}, {head}",
            )
    ax.set_xlabel("depth (layers)")
    ax.set_ylabel("same likeliest token as\nthe last layer (%)")
    ax.set_xticks([1, *range(5, len(next(iter(next(iter(curves.values())).values()))) + 1, 5)])
    ax.set_ylim(0, 102)
    ax.legend(fontsize=8, loc="lower right", title=f"{prompts} held-out replies", title_fontsize=8)
    return figure


def depth_figure(
    records: Sequence[Record], words: Sequence[Sequence[str]], full_depth: int
) -> Figure:
    """How deep each token of one answer went, one panel a policy.

    Args:
        records: of one question.
        words: of each record, what to write over each token; empty for speech.
        full_depth: layers of the model.
    """
    longest = max(len(r.tokens) for r in records)
    figure, axes = plt.subplots(
        len(records), 1, figsize=(8, 1.25 * len(records) + 0.5), sharex=True, squeeze=False
    )
    for ax, record, labels in zip(axes[:, 0], records, words, strict=True):
        for modality in Modality:
            here = [i for i, m in enumerate(record.modalities) if m == modality]
            ax.bar(
                here,
                [record.depths[i] for i in here],
                width=0.85,
                color=COLOURS[modality.name.lower()],
                label=modality.name.lower(),
            )
        for i, word in enumerate(labels):
            if word:
                ax.text(i, full_depth + 0.6, word, rotation=60, fontsize=6, ha="left", va="bottom")
        ax.set_ylim(0, full_depth)
        ax.set_yticks([0, full_depth // 2, full_depth])
        ax.set_xlim(-1, longest)
        ax.text(1.01, 0.5, record.policy, transform=ax.transAxes, fontsize=8, va="center")
    axes[len(records) // 2, 0].set_ylabel("depth (layers)")
    axes[-1, 0].set_xlabel("token of the reply")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.tight_layout(h_pad=1.6)
    figure.legend(handles, labels, loc="upper center", ncols=2, fontsize=8, bbox_to_anchor=(0.5, 0))
    return figure


def save(figure: Figure, folder: Path, name: str) -> str:
    """Write a figure as PNG and SVG; gives the PNG's file name."""
    for kind in ("png", "svg"):
        part = folder / f"{name}.{kind}.part"
        figure.savefig(part, format=kind)
        part.replace(folder / f"{name}.{kind}")
    plt.close(figure)
    return f"{name}.png"
