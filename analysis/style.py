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
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

from eepolicy.errors import EepolicyError
from eepolicy.policies import ByModality, parse_policy
from eepolicy.probing import plot

#: text and speech have the same two colours everywhere
COLOURS = {modality.name.lower(): colour for modality, colour in plot.COLOURS.items()}
MARKERS = {modality.name.lower(): marker for modality, marker in plot.MARKERS.items()}

#: colours and markers of policies that declare none: other hues and shapes than the built-in ones
OTHER_COLOURS = ("#332288", "#88CCEE", "#117733", "#DDCC77", "#882255", "#AA4499", "#44AA99")
OTHER_MARKERS = ("h", "X", "P", "*", "d", "<", ">", "8", "H")
#: markers of further policies with the same colour, those first that differ most
FURTHER_MARKERS = ("o", "s", "^", "D", "v", "X", "*", "P", "p", "<", "h", ">", "d", "8", "H")


def outside_legend(
    figure: Figure,
    *axes: Axes,
    loc: str = "outside upper center",
    ncols: int | None = None,
) -> None:
    """Explain the marks of some axes in one legend beside all axes, where it covers no data.

    A mark with the same label in several axes is listed once.

    Args:
        figure: figure with a constrained layout.
        axes: axes whose labelled marks are explained.
        loc: place of the legend, one of matplotlib's that begin with "outside".
        ncols: number of columns; as many as there are entries if None.
    """
    handles = {
        label: handle
        for ax in axes
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    place: Any = loc
    columns = ncols or max(1, len(handles))
    plain_legend(figure.legend(handles.values(), handles, loc=place, ncols=columns))


def log_axis(ax: Axes) -> None:
    """Make the vertical axis logarithmic, with ticks at 1, 2 and 5 and plain numbers."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    ax.yaxis.set_minor_formatter(NullFormatter())


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
        colour, marker = parse_policy(spec, files=False).plot_style()
    except (EepolicyError, ImportError):  # a run of a package that is not installed here
        colour = marker = ""
    name = re.match("[a-z_-]*", spec)
    index = zlib.crc32((name[0] if name else "").encode())
    return (
        colour or OTHER_COLOURS[index % len(OTHER_COLOURS)],
        marker or OTHER_MARKERS[index // len(OTHER_COLOURS) % len(OTHER_MARKERS)],
    )


def families(policies: Sequence[str]) -> list[tuple[str, str]]:
    """Colours and markers of the policies of one figure; no two policies look the same.

    The first policy of a family has the style of `family`.  Further ones, as in a sweep over
    depths, keep its colour and get the next free marker.  Policies whose classes declare no colour
    get the next free colour.

    Args:
        policies: spec strings.

    Examples:
        >>> families(["static@10", "static@16"])
        [('#56B4E9', 's'), ('#56B4E9', 'o')]
    """
    colours: dict[str, str] = {}
    styles: list[tuple[str, str]] = []
    for policy in policies:
        name = re.sub(r"[^a-z_-].*", "", policy.removeprefix("both=").removeprefix("speech="))
        colour, marker = family(policy)
        if colour in OTHER_COLOURS:
            free = [c for c in OTHER_COLOURS if c not in colours.values()]
            if colour in colours.values() and name not in colours and free:
                colour = free[0]
            colour = colours.setdefault(name, colour)
        markers = [m for m in (marker, *FURTHER_MARKERS) if (colour, m) not in styles]
        styles.append((colour, markers[0] if markers else marker))
    return styles


def plain_legend(legend: Legend) -> None:
    """Show the texts of a legend as they are.

    Matplotlib reads text between dollar signs as mathematics, and fails if it is none.  Spec
    strings of policies of one's own, names and tokens may contain dollar signs.

    Args:
        legend: the legend.
    """
    for text in legend.get_texts():
        text.set_parse_math(False)


@contextmanager
def figures() -> Iterator[None]:
    """Set matplotlib and seaborn for the figures of the project; restore them afterwards."""
    settings: Any = {
        "figure.dpi": 150,
        "savefig.bbox": "tight",
        "savefig.facecolor": "white",
        "svg.fonttype": "none",
        "pdf.fonttype": 42,  # TrueType: journals refuse the default, Type 3
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }
    with plt.rc_context(), sns.axes_style("ticks"):
        plt.rcParams.update(settings)
        plt.switch_backend("agg")
        yield
