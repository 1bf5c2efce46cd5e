"""The figure of a bench: what each way of decoding took, and what the machine would allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from eepolicy.analysis.style import figures

MEASURED, PROMISED, LIMIT = "#0072B2", "#E69F00", "#000000"


def milliseconds(records: Sequence[Mapping[str, Any]], ax: Axes) -> None:
    """The ways of one table, from the first down.

    Args:
        records: of `eepolicy.analysis.timing.runner.Bench.run`, full depth first.
        ax: to draw on.
    """
    places = np.arange(len(records))
    turns = [1e3 * np.asarray(r["turns"]) for r in records]
    low, middle, high = np.array([np.percentile(t, [25, 50, 75]) for t in turns]).T
    promised = 1e3 * records[0]["seconds"] / np.array([r["promised"] for r in records])
    least = 1e3 * np.array([r["least_seconds"] for r in records])
    ax.errorbar(
        middle,
        places,
        xerr=(middle - low, high - middle),
        fmt="o",
        color=MEASURED,
        label="measured, median and quartiles",
    )
    ax.plot(promised, places, "d", mfc="none", color=PROMISED, ms=9, label="promised")
    ax.plot(least, places, "|", color=LIMIT, ms=11, mew=2, label="limit")
    ax.set_yticks(places, [r["decoding"] for r in records])
    ax.set(xlabel="ms a token", xlim=(0, None), ylim=(len(records) - 0.5, -0.5))
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)


def draw(tables: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draw the tables of a bench below each other, by their titles, and write the picture."""
    rows = [len(records) for records in tables.values()]
    with figures():
        figure, axes = plt.subplots(
            len(tables),
            figsize=(7, 0.27 * sum(rows) + 0.85 * len(rows) + 0.4),
            height_ratios=rows,
            squeeze=False,
            layout="constrained",
        )
        for ax, (title, records) in zip(axes[:, 0], tables.items(), strict=True):
            milliseconds(records, ax)
            ax.set_title(title, loc="left")
        *marks, measured = axes[0, 0].get_legend_handles_labels()[0]
        figure.legend(handles=[measured, *marks], loc="outside upper right", ncols=3)
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path)
        plt.close(figure)
