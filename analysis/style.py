"""One visual language for all figures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from eepolicy.probing import plot

#: text and speech have the same two colours everywhere
COLOURS = {modality.name.lower(): colour for modality, colour in plot.COLOURS.items()}

#: family of a policy: colour and marker
FAMILIES = {
    "full": ("#000000", "*"),
    "static": ("#56B4E9", "s"),
    "spark:even": ("#009E73", "o"),
    "spark:odd": ("#009E73", "D"),
    "spark:triple": ("#009E73", "^"),
    "spark": ("#009E73", "p"),
    "entropy": ("#CC79A7", "P"),
    "patience": ("#CC79A7", ">"),
    "confidence": ("#E69F00", "X"),
    "margin": ("#E69F00", "d"),
    "saturation": ("#D55E00", "<"),
    "random": ("#777777", "x"),
    "oracle": ("#000000", "o"),
    "text": ("#0072B2", "v"),
}


def depth_axis(ax: Axes) -> None:
    """Depth to the right, in whole layers."""
    ax.set_xlabel("depth, layers")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def family(policy: str) -> tuple[str, str]:
    """Colour and marker of a policy's spec string."""
    for name, look in FAMILIES.items():
        if policy.startswith(name):
            return look
    return "#777777", "h"


@contextmanager
def figures() -> Iterator[None]:
    """Matplotlib and seaborn as all figures of the project use them; restored afterwards."""
    settings: Any = {
        "figure.dpi": 150,
        "savefig.bbox": "tight",
        "savefig.facecolor": "white",
        "svg.fonttype": "none",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }
    with plt.rc_context(), sns.axes_style("ticks"):
        plt.rcParams.update(settings)
        plt.switch_backend("agg")
        yield
