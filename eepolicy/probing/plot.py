"""Figures of a probe."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from textwrap import fill
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from eepolicy.errors import EepolicyError
from eepolicy.modality import Modality
from eepolicy.probing.statistics import Statistic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from typing_extensions import Self

#: blue and vermilion of the palette of Okabe and Ito, which colour-blind readers can tell apart
COLOURS = {Modality.TEXT: "#0072B2", Modality.SPEECH: "#D55E00"}
MARKERS = {Modality.TEXT: "o", Modality.SPEECH: "s"}
#: a heatmap shows tokens in its cells up to this number of columns, if they have few letters
MAX_LABELLED_COLUMNS, MAX_LETTERS = 40, 7
#: statistics that `Plots.layers` draws by default
DEFAULT_PANELS = ("agreement", "entropy", "confidence", "kl")


class Readouts(Protocol):
    """The part of a `ProbeResult` that figures need."""

    @property
    def depths(self) -> NDArray[np.int64]: ...
    @property
    def statistics(self) -> tuple[str, ...]: ...
    @property
    def words(self) -> list[str]: ...

    def __len__(self) -> int: ...
    def __getitem__(self, which: NDArray[Any], /) -> Self: ...
    def __getattr__(self, name: str) -> NDArray[Any]: ...
    def definition(self, name: str) -> Statistic | None: ...
    def named(self, ids: NDArray[np.int64]) -> list[str]: ...


@dataclass(frozen=True)
class Plots:
    """Draws the figures of a probe.

    Args:
        result: the `ProbeResult`.
    """

    result: Readouts

    def layers(self, *statistics: str, ax: Axes | Sequence[Axes] | None = None) -> Figure:
        """Draw statistics by depth, one line a modality.

        A line is the median over tokens; the band spans the middle half of the tokens.  Agreement
        is a share, drawn without a band.

        Args:
            *statistics: names, one panel each.  By default agreement, entropy, confidence and KL,
                as far as they were measured; with a single `ax`, the first of these.
            ax: axes to draw on, as many as there are statistics; None makes a figure.

        Returns:
            The figure of the panels.

        Raises:
            EepolicyError: a statistic that the probe does not have, or another number of axes.

        Examples:
            >>> model = eepolicy.load("pocket")
            >>> result = eepolicy.probe(model, "What color is snow?")
            >>> figure = result.plot.layers("entropy", "kl")
        """
        given = None if ax is None else list(ax) if isinstance(ax, Sequence) else [ax]
        drawable = self._drawable()
        names = statistics or tuple(n for n in DEFAULT_PANELS if n in drawable)
        if given is not None and not statistics:
            names = names[: len(given)]
        self._check(names)
        if given is not None and len(given) != len(names):
            raise EepolicyError(
                f"give one ax a statistic: {len(names)} for {', '.join(names)}; got {len(given)}"
            )
        panels = given or _panels(len(names))
        for panel, name in zip(panels, names, strict=True):
            self._draw_panel(panel, name)
        # the labels of medians explain the bands
        legend = next(
            (p for p, n in zip(panels, names, strict=True) if n != "agreement"), panels[0]
        )
        if given is not None:
            legend.legend(frameon=False)
        figure = _shown_in_notebooks(cast("Figure", legend.figure))
        if given is None:
            handles, labels = legend.get_legend_handles_labels()
            location: Any = "outside upper center"
            figure.legend(handles, labels, loc=location, ncols=len(labels), frameon=False)
        return figure

    def heatmap(
        self, statistic: str = "entropy", document: int | None = None, ax: Axes | None = None
    ) -> Figure:
        """Draw a statistic of one document: depth upward, tokens to the right.

        The label of a column is the token that follows.  A cell shows the most probable token of
        its depth, if there is room.

        Args:
            statistic: name of the statistic.
            document: number of the document; by default the first one.
            ax: axes to draw on; None makes a figure.

        Returns:
            The figure of the axes.

        Raises:
            EepolicyError: a statistic or document that the probe does not have.

        Examples:
            >>> model = eepolicy.load("pocket")
            >>> figure = eepolicy.probe(model, "What color is snow?").plot.heatmap("kl")
        """
        self._check((statistic,))
        numbers = np.unique(self.result.document)
        number = numbers[0] if document is None else document
        if number not in numbers:
            shown = ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")
            raise EepolicyError(f"the probe has no document {document}, only {shown}")
        result = self.result[self.result.document == number]
        values = self._values(result, statistic)
        axes = _heatmap_axes(values.shape) if ax is None else ax
        image = axes.imshow(values, aspect="auto", origin="lower", cmap="cividis")
        step = -(-len(result) // 80)
        columns = range(0, len(result), step)
        # a token may contain "$", which matplotlib would read as mathematics
        axes.set_xticks(columns, result.words[::step], rotation=90, parse_math=False)
        axes.tick_params(axis="x", labelsize=7)
        for column, tick in zip(columns, axes.get_xticklabels(), strict=True):
            tick.set_color(COLOURS[Modality(result.modality[column])])
        some = np.unique(np.linspace(0, len(result.depths) - 1, 8).round().astype(int))
        axes.set_yticks(some, [str(depth) for depth in result.depths[some]])
        axes.set_ylabel("depth, layers")
        axes.set_xlabel(_column_label(result))
        figure = _shown_in_notebooks(cast("Figure", axes.figure))
        bar = figure.colorbar(image, ax=axes, pad=0.01)
        bar.set_label(self._label(statistic), parse_math=False)
        if len(result) <= MAX_LABELLED_COLUMNS and "top1" in result.statistics:
            _write_tokens(axes, result, values)
        return figure

    def _draw_panel(self, panel: Axes, name: str) -> None:
        """Draw one statistic by depth."""
        # a core dependency that takes long to import
        from matplotlib.ticker import MaxNLocator

        values = self._values(self.result, name)
        for modality in Modality:
            chosen = self.result.modality == modality
            if chosen.any():
                self._draw_line(panel, values[:, chosen], modality, share=name == "agreement")
        panel.set_xlabel("depth, layers")
        panel.set_ylabel(self._label(name), parse_math=False)
        if name.startswith("rank"):
            panel.set_yscale("log")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.spines[["top", "right"]].set_visible(False)

    def _draw_line(
        self, panel: Axes, values: NDArray[Any], modality: Modality, share: bool
    ) -> None:
        """Draw the average over tokens of values (depths, tokens)."""
        average = np.nanmean(values, 1) if share else np.nanmedian(values, 1)
        colour = COLOURS[modality]
        panel.plot(
            self.result.depths,
            average,
            color=colour,
            marker=MARKERS[modality],
            markersize=3.5,
            label=modality.name.lower() + ("" if share else " (median, middle half)"),
        )
        if not share:
            low, high = np.nanquantile(values, [0.25, 0.75], axis=1)
            panel.fill_between(self.result.depths, low, high, color=colour, alpha=0.2, lw=0)

    def _values(self, result: Readouts, name: str) -> NDArray[Any]:
        """A statistic as floats, nan where it is missing: (depths, tokens)."""
        values = np.asarray(getattr(result, name))
        return np.where(values < 0, np.nan, values) if values.dtype.kind == "i" else values

    def _label(self, name: str) -> str:
        """Description and unit of a statistic, in lines of 32 letters."""
        if name == "agreement":
            return fill("agreement with the last layer, share of tokens", 32)
        definition = self.result.definition(name)
        return fill(name if definition is None else definition.label, 32)

    def _drawable(self) -> list[str]:
        """Names that can be drawn: agreement, and statistics that are no ids."""
        names = ["agreement"] if "top1" in self.result.statistics else []
        for name in self.result.statistics:
            definition = self.result.definition(name)
            if definition is None or definition.average != "none":
                names.append(name)
        return names

    def _check(self, names: tuple[str, ...]) -> None:
        drawable = self._drawable()
        if not names or not {*names} <= {*drawable}:
            raise EepolicyError(
                f"this probe can draw {', '.join(drawable) or 'nothing'}; "
                f"got {', '.join(names) or 'no names'}"
            )


def _panels(count: int) -> list[Axes]:
    """Axes of a new figure, two a row."""
    from matplotlib.figure import Figure

    columns = min(2, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.6 * columns, 3.1 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels[count:]:
        panel.set_axis_off()
    return panels[:count]


def _heatmap_axes(shape: tuple[int, ...]) -> Axes:
    """Axes of a new figure that fits (depths, tokens) cells."""
    from matplotlib.figure import Figure

    depths, tokens = shape
    size = (min(24.0, 2.4 + 0.30 * tokens), 1.6 + 0.19 * depths)
    return Figure(figsize=size, layout="constrained").subplots()


def _shown_in_notebooks(figure: Figure) -> Figure:
    """The figure, which a notebook displays without `%matplotlib inline`.

    Figures are made without pyplot, so that none stay open.  Notebooks ask an object for
    `_repr_png_` if no extension displays its type.
    """
    figure._repr_png_ = partial(png_of, figure)  # type: ignore[attr-defined]
    return figure


def png_of(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _write_tokens(axes: Axes, result: Readouts, values: NDArray[Any]) -> None:
    """Write the most probable tokens into the cells (depths, tokens), if they are short."""
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for row, ids in enumerate(result.top1):
        for column, word in enumerate(result.named(ids)):
            if len(word) <= MAX_LETTERS:
                axes.text(
                    column,
                    row,
                    word,
                    ha="center",
                    va="center",
                    fontsize=5.5,
                    color="white" if values[row, column] < middle else "black",
                    parse_math=False,
                )


def _column_label(result: Readouts) -> str:
    """What the columns of a heatmap are, with the colours of the modalities."""
    names = {Modality.TEXT: "text blue", Modality.SPEECH: "speech orange"}
    present = (name for modality, name in names.items() if (result.modality == modality).any())
    return f"token that follows ({', '.join(present)})"
