"""The figure of a bench: measured times, ideal times and the roofline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from eepolicy.analysis.style import figures
from eepolicy.io import make_folder, write_figure

MEASURED, IDEAL, ROOFLINE = "#0072B2", "#E69F00", "#000000"


def milliseconds(records: Sequence[Mapping[str, Any]], ax: Axes) -> None:
    """Draw the contenders of one table, the first one at the top.

    Args:
        records: records of `eepolicy.analysis.timing.runner.Bench.run`, full depth first.
        ax: axes to draw on.
    """
    y = np.arange(len(records))
    trials = [1e3 * np.asarray(r["trials"]) for r in records]
    low, middle, high = np.array([np.percentile(t, [25, 50, 75]) for t in trials]).T
    ideal = 1e3 * records[0]["seconds"] / np.array([r["ideal_speedup"] for r in records])
    roofline = 1e3 * np.array([r["roofline_seconds"] for r in records])
    ax.errorbar(
        middle,
        y,
        xerr=(middle - low, high - middle),
        fmt="o",
        color=MEASURED,
        label="measured, median and quartiles",
    )
    ax.plot(ideal, y, "d", mfc="none", color=IDEAL, ms=9, label="ideal")
    ax.plot(roofline, y, "|", color=ROOFLINE, ms=11, mew=2, label="roofline")
    ax.set_yticks(y, [r["decoding"] for r in records], parse_math=False)
    ax.set(xlabel="ms a token", xlim=(0, None), ylim=(len(records) - 0.5, -0.5))
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)


def draw(tables: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path) -> None:
    """Draw the tables of a bench below each other and write the figure.

    Args:
        tables: records by title.
        path: file to write; its folder is created if it does not exist.
    """
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
            ax.set_title(title, loc="left", parse_math=False)
        *marks, measured = axes[0, 0].get_legend_handles_labels()[0]
        figure.legend(handles=[measured, *marks], loc="outside upper right", ncols=3)
        make_folder(Path(path).parent)
        write_figure(path, figure)
        plt.close(figure)
