"""Colours, markers and settings that all figures share."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from eepolicy.errors import EepolicyError
from eepolicy.policies import ByModality, parse_policy
from eepolicy.probing import plot

#: text and speech have the same two colours everywhere
COLOURS = {modality.name.lower(): colour for modality, colour in plot.COLOURS.items()}

#: colours and markers of policies that declare none: other hues and shapes than the built-in ones
OTHER_COLOURS = ("#332288", "#88CCEE", "#117733", "#DDCC77", "#882255", "#AA4499", "#44AA99")
OTHER_MARKERS = ("h", "H", "8", "1", "2", "3", "4", "|", "_")


def depth_axis(ax: Axes) -> None:
    """Label the horizontal axis with the depth, in whole layers."""
    ax.set_xlabel("depth, layers")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def family(policy: str) -> tuple[str, str]:
    """Colour and marker of a policy's spec string.

    They are those that its class declares.  A class without them gets a colour of Tol's palette for
    the colour-blind and a marker, chosen by its name: the same in every figure.

    Examples:
        >>> family("spark:triple@14")
        ('#009E73', '^')
        >>> family("static@16") == family("both=static@10")
        True
    """
    if policy.startswith("text="):
        return ByModality.colour, ByModality.marker
    spec = policy.removeprefix("both=").removeprefix("speech=")
    try:
        colour, marker = parse_policy(spec).plot_style()
    except (EepolicyError, ImportError):  # a run of a package that is not installed here
        colour = marker = ""
    name = re.match("[a-z_-]*", spec)
    index = zlib.crc32((name[0] if name else "").encode())
    return (
        colour or OTHER_COLOURS[index % len(OTHER_COLOURS)],
        marker or OTHER_MARKERS[index // len(OTHER_COLOURS) % len(OTHER_MARKERS)],
    )


def families(policies: Sequence[str]) -> list[tuple[str, str]]:
    """Colours and markers of the policies of one figure.

    Policies of different names look different: a clash of two that declare none moves the later one
    on to the next free marker.

    Args:
        policies: spec strings.
    """
    looks: list[tuple[str, str]] = []
    names: dict[tuple[str, str], str] = {}
    for policy in policies:
        name = re.sub(r"[^a-z_-].*", "", policy.removeprefix("both="))
        colour, marker = family(policy)
        while names.setdefault((colour, marker), name) != name and marker in OTHER_MARKERS:
            marker = OTHER_MARKERS[(OTHER_MARKERS.index(marker) + 1) % len(OTHER_MARKERS)]
        looks.append((colour, marker))
    return looks


@contextmanager
def figures() -> Iterator[None]:
    """Set matplotlib and seaborn for the figures of the project; restore them afterwards."""
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
