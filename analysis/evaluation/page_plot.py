"""The interactive figure of the report page: any quality against any cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import bokeh
from bokeh.embed import json_item
from bokeh.models import ColumnDataSource, HoverTool, Range1d
from bokeh.models.annotations.geometry import BoxAnnotation
from bokeh.plotting import figure

from eepolicy.analysis.evaluation.columns import Column, is_measured
from eepolicy.analysis.style import families

#: rows of `Comparison.table`
Rows = Sequence[Mapping[str, Any]]

#: Bokeh's name of each marker of `style`, and its shape in the legend: an SVG path in a box from
#: -8 to 8; stroke only where the marker has no area
MARKERS = {
    "o": ("circle", "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0z"),
    "s": ("square", "M-5,-5h10v10h-10z"),
    "^": ("triangle", "M0,-5.5L6,5H-6z"),
    "v": ("inverted_triangle", "M0,5.5L6,-5H-6z"),
    "D": ("diamond", "M0,-6.5L5,0L0,6.5L-5,0z"),
    "X": ("x", "M-5,-5L5,5M-5,5L5,-5"),
    "x": ("circle_x", "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0M-3.5,-3.5L3.5,3.5M-3.5,3.5L3.5,-3.5"),
    "P": ("plus", "M-2,-6h4v4h4v4h-4v4h-4v-4h-4v-4h4z"),
    "*": ("star", "M0,-7L1.7,-2.3H6.7L2.7,.9L4.1,5.7L0,2.8L-4.1,5.7L-2.7,.9L-6.7,-2.3H-1.7z"),
    "p": ("square_pin", "M-6,-6Q0,-2 6,-6Q2,0 6,6Q0,2 -6,6Q-2,0 -6,-6z"),
    "h": ("hex", "M0,-6L5.2,-3V3L0,6L-5.2,3V-3z"),
    "H": ("hex_dot", "M0,-6L5.2,-3V3L0,6L-5.2,3V-3zM-1,0h2"),
    "d": ("square_x", "M-5,-5h10v10h-10zM-5,-5L5,5M-5,5L5,-5"),
    "<": ("triangle_pin", "M0,-6Q1,2 6,5Q0,3 -6,5Q-1,2 0,-6z"),
    ">": ("triangle_dot", "M0,-5.5L6,5H-6zM-1,1h2"),
    "8": ("circle_cross", "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0M-5,0H5M0,-5V5"),
}
#: costs and qualities to choose from, in this order; others follow by `Column.plot`
COSTS = ("speedup", "seconds", "speech_depth", "layer_calls")
QUALITIES = ("wer", "accuracy_speech", "accuracy_text", "mos")


def bokeh_script() -> str:
    """Bokeh's JavaScript, minified; the page contains it, so that nothing is fetched."""
    path = Path(bokeh.__file__).parent / "server" / "static" / "js" / "bokeh.min.js"
    return path.read_text(encoding="utf-8")


def axes(rows: Rows, columns: Sequence[Column], margins: object = None) -> dict[str, Any]:
    """List the costs and qualities to choose from, as JSON types.

    Args:
        rows: rows of `Comparison.table`.
        columns: columns of the comparison.
        margins: equivalence margins with `wer`, `accuracy` and `mos`, in the units of the table.
    """
    by_name = {column.name: column for column in columns}
    plotted = {kind: [c.name for c in columns if c.plot == kind] for kind in ("cost", "quality")}
    options = {}
    for kind, first in (("cost", COSTS), ("quality", QUALITIES)):
        names = dict.fromkeys((*first, *plotted[kind]))
        chosen = [by_name[name] for name in names if name in by_name]
        options[kind] = [
            {
                "name": column.name,
                "label": column.label,
                "scale": column.scale,
                "digits": column.digits,
                "better": _better(column),
                "margin": margin(column.name, margins) if kind == "quality" else None,
            }
            for column in chosen
            if is_measured(rows, column)
        ]
    return options


def _better(column: Column) -> str:
    """Which values of an axis are better: of costs the lower ones, except a speed-up."""
    return column.better if column.plot == "quality" or column.relative else "lower"


def margin(name: str, margins: object) -> float | None:
    """Equivalence margin of a quality, in the units of the table; None without one."""
    field = "accuracy" if name.startswith("accuracy") else name
    value = getattr(margins, field, None)
    return None if value is None else float(value)


def markers(policies: Sequence[str]) -> list[dict[str, str]]:
    """Colour, Bokeh's marker and the legend's SVG path of each policy.

    Args:
        policies: spec strings.
    """
    styles = []
    for colour, marker in families(policies):
        name, path = MARKERS.get(marker, MARKERS["o"])
        styles.append({"colour": colour, "marker": name, "path": path})
    return styles


def plot_item() -> dict[str, Any]:
    """Build the empty figure as Bokeh's JSON; the page fills its source `rows`.

    Its models have names: the source `rows`, and the box `margin`.
    """
    names = ("x", "y", "x_low", "x_high", "y_low", "y_high", "colour", "marker", "policy")
    texts = ("x_text", "y_text", "status")
    source = ColumnDataSource({name: [] for name in (*names, *texts)}, name="rows")
    drawn = figure(
        height=400,
        x_range=Range1d(),
        y_range=Range1d(),
        sizing_mode="stretch_width",
        # no tool that takes a finger's drag: it scrolls the page
        tools="",
        toolbar_location=None,
        name="figure",
        background_fill_alpha=0,
        border_fill_alpha=0,
        outline_line_color=None,
    )
    drawn.add_layout(
        BoxAnnotation(name="margin", fill_alpha=0.16, fill_color="#777777", line_color=None)
    )
    bars = {"source": source, "line_color": "colour", "line_width": 1.5}
    drawn.segment(x0="x_low", x1="x_high", y0="y", y1="y", **bars)
    drawn.segment(x0="x", x1="x", y0="y_low", y1="y_high", **bars)
    points = drawn.scatter(
        "x",
        "y",
        source=source,
        marker="marker",
        size=13,
        line_color="colour",
        fill_color="colour",
        line_width=2,
        fill_alpha=0.75,
    )
    tooltips = [("", "@policy"), ("quality", "@y_text"), ("cost", "@x_text"), ("", "@status")]
    drawn.add_tools(HoverTool(renderers=[points], tooltips=tooltips, mode="mouse"))
    return dict(json_item(drawn))
