"""A probe in a notebook: averages by depth, and a heatmap of the first document."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from eepolicy.html import or_error, paragraph, picture, sortable_table
from eepolicy.probing.plot import Plots, Readouts, png_of

if TYPE_CHECKING:
    import pandas as pd

#: statistics of the heatmap, the first one that was measured
SHOWN = ("entropy", "confidence", "kl", "rank_last")
#: tokens of the heatmap at most: more would be too small to read in a notebook
MAX_TOKENS = 28


class Summarised(Readouts, Protocol):
    """The part of a `ProbeResult` that its HTML needs."""

    @property
    def plot(self) -> Plots: ...
    def summary(self) -> pd.DataFrame: ...


def result_html(result: Summarised) -> str:
    """A probe as HTML that needs no other file.

    Args:
        result: the `ProbeResult`.
    """
    parts = [paragraph(repr(result)), or_error(lambda: _table(result), "the table")]
    name = next((name for name in SHOWN if name in result.statistics), None)
    if name is not None and len(result):
        parts.append(or_error(lambda: _heatmap(result, name), "the heatmap"))
    return f"<div>{''.join(parts)}</div>"


def _table(result: Summarised) -> str:
    """The averages by depth; empty without any."""
    table = result.summary()
    if not len(table.columns):
        return ""
    rows = [
        [str(cell) for cell in key] + [_number(value) for value in values]
        for key, values in zip(table.index, table.to_numpy(), strict=True)
    ]
    return sortable_table(["modality", "depth", *table.columns], rows)


def _heatmap(result: Summarised, name: str) -> str:
    """The heatmap of the first tokens, and what it shows; empty where nothing was measured."""
    document = result.document[0]
    (tokens,) = np.nonzero(result.document == document)
    shown = result[tokens[:MAX_TOKENS]]
    if not np.isfinite(np.asarray(getattr(shown, name), float)).any():
        return ""
    caption = f"{name} of document {document}"
    if len(tokens) > len(shown):
        caption += f", its first {len(shown)} of {len(tokens)} tokens"
    return picture(png_of(shown.plot.heatmap(name)), caption) + paragraph(caption, small=True)


def _number(value: Any) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
