"""Lenses, fitted heads and branches at predicting the last layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import ClassVar

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from eepolicy import Document, HookedModel, Modality, probe
from eepolicy.analysis.stats.clustered import as_columns, from_columns, sums
from eepolicy.analysis.studies.base import RatioMeasure, Study, Workspace, progress_bar
from eepolicy.analysis.studies.spoken_words import exit_depths
from eepolicy.analysis.style import depth_axis, log_axis, outside_legend
from eepolicy.analysis.tables import MISSING, markdown_table
from eepolicy.fitting.jacobian import fit_jacobian
from eepolicy.fitting.linear import fit_linear
from eepolicy.heads import ExitHead, load_heads
from eepolicy.heads.files import read_notes
from eepolicy.heads.fingerprint import fingerprint
from eepolicy.loading.pocket import pocket_folder

MEASURES = (
    RatioMeasure("agreement", "agreement with the last layer", "%", 100.0, 1, "agreement", "known"),
    RatioMeasure("kl", "KL from the last layer", "nats", 1.0, 2, "kl", "known"),
)
#: colour and marker of each lens
_STYLES = {
    "logit lens": ("#777777", "o"),
    "Jacobian lens": ("#D55E00", "^"),
    "linear lens": ("#E69F00", "D"),
    "tuned lens": ("#0072B2", "s"),
    "fitted heads": ("#0072B2", "s"),
    "branch": ("#009E73", "*"),
}
#: questions of the development split on whose replies the linear lens is fitted
LINEAR_REPLIES = 100
#: the Jacobian lens is fitted on the shortest of four times as many replies to the first of them
JACOBIAN_REPLIES = 12


@dataclass(frozen=True, eq=False)
class LensComparison(Study):
    """Lenses by depth, on replies on which none was fitted.

    Attributes:
        rows: one row for each lens, modality, depth and reply: `lens`, `modality`, `depth`,
            `document`, sums over tokens of `agreement` and `kl`, and their number `known`.
    """

    rows: pd.DataFrame

    name: ClassVar[str] = "lenses"
    title: ClassVar[str] = "Lenses compared"
    help: ClassVar[str] = "plain, linear, Jacobian and tuned lens and branches, by depth"
    by_default: ClassVar[bool] = False
    measured_time: ClassVar[str] = "8 minutes on one thread, from stored replies"

    @classmethod
    def run(cls, workspace: Workspace) -> LensComparison:
        """Fit a linear and a Jacobian lens on other replies, and compare on those at full depth."""

        def measure() -> pd.DataFrame:
            replies = workspace.development_replies(LINEAR_REPLIES)
            lenses = {
                "linear lens": fit_linear(workspace.model, replies, lens_depths(workspace.model)),
                "Jacobian lens": fitted_jacobian(workspace, replies),
                **heads_of_model(workspace.model),
            }
            return compare_lenses(workspace.model, workspace.replies, lenses)

        return cls(workspace.stored("lenses", measure))

    def to_pandas(self) -> pd.DataFrame:
        """One row for each lens, modality and depth: measures with `..._low` and `..._high`."""
        rows = []
        for (lens, modality), part in self.rows.groupby(["lens", "modality"], sort=False):
            columns = {m.name: m.by(part, "depth") for m in MEASURES}
            rows += [
                {"lens": lens, "modality": modality, "depth": depth}
                | as_columns({name: by[depth] for name, by in columns.items()})
                for depth in sorted(part.depth.unique())
            ]
        return pd.DataFrame(rows)

    def table(self) -> str:
        """One Markdown table for each measure: a row for each modality and depth."""
        lenses = list(self.rows.lens.unique())
        tables = []
        for measure in MEASURES:
            rows = []
            for modality in self.rows.modality.unique():
                cells = {lens: measure.by(self._rows(modality, lens), "depth") for lens in lenses}
                for depth in sorted(self.rows.depth.unique()):
                    own = (cells[lens].get(depth) for lens in lenses)
                    shown = (MISSING if each is None else each.text(measure.digits) for each in own)
                    rows.append([modality, str(depth), *shown])
            title = f"{measure.heading[0].upper()}{measure.heading[1:]}:"
            tables.append(f"{title}\n\n{markdown_table(['', 'depth', *lenses], rows)}")
        return "\n\n".join(tables)

    def figure(self) -> Figure:
        """Both measures of speech tokens by depth, bars 95 % intervals."""
        frame = self.to_pandas()
        frame = frame[frame.modality == "speech"]
        figure, axes = plt.subplots(1, len(MEASURES), figsize=(8, 3.2), layout="constrained")
        for ax, measure in zip(axes, MEASURES, strict=True):
            for lens, part in frame.groupby("lens", sort=False):
                colour, marker = _STYLES[str(lens)]
                intervals = from_columns(part, measure.name)
                ax.errorbar(
                    part.depth,
                    intervals.value,
                    yerr=intervals.bars,
                    color=colour,
                    marker=marker,
                    ms=4,
                    label=lens,
                )
            depth_axis(ax)
            ax.set_ylabel(fill(f"speech: {measure.heading}", 28))
        log_axis(axes[1])
        outside_legend(figure, axes[0])
        return figure

    def _rows(self, modality: str, lens: str) -> pd.DataFrame:
        return self.rows[(self.rows.modality == modality) & (self.rows.lens == lens)]


def lens_depths(model: HookedModel) -> list[int]:
    """Depths that are compared: those of the other studies, and those with a branch."""
    return sorted({*exit_depths(model)[:-1], *(depth for depth in model.branches if depth)})


def fitted_jacobian(workspace: Workspace, replies: Sequence[Document]) -> ExitHead:
    """The Jacobian lens of a workspace's model: read from its folder, or fitted and stored.

    It is fitted on the shortest of the first replies: the time rises with their length.
    """
    file, model = workspace.folder / "jacobian.safetensors", workspace.model
    if not file.exists():
        chosen = sorted(replies[: 4 * JACOBIAN_REPLIES], key=lambda reply: len(reply.tokens))
        chosen, progress = chosen[:JACOBIAN_REPLIES], progress_bar("Jacobian lens")
        lens = fit_jacobian(model, chosen, lens_depths(model), rows=16, progress=progress)
        lens.save(file, model.model, notes={"replies": len(chosen)})
    return load_heads(file, model.lens, model.model)


def heads_of_model(model: HookedModel) -> dict[str, ExitHead]:
    """The heads of a model by name: those without layers of their own, and its branches.

    The pocket model ships with tuned lenses at depths with a branch too.
    """
    file, heads = pocket_folder() / "heads.safetensors", dict[str, ExitHead]()
    if fingerprint(model.model) == read_notes(file)["model"]:
        heads["tuned lens"] = load_heads(file, model.lens, model.model, "tuned")
    else:
        heads["fitted heads"] = model.heads
    if model.branches:
        heads["branch"] = model.heads
    return heads


def compare_lenses(
    model: HookedModel, replies: Sequence[Document], lenses: Mapping[str, ExitHead]
) -> pd.DataFrame:
    """Read replies out with several lenses at the same depths.

    Args:
        model: model with its exit heads.
        replies: replies on which no lens was fitted.
        lenses: lenses by name; the logit lens is added.  The heads named `"branch"` are read at
            depths with a branch, and others at depths where they have none.

    Returns:
        Rows of `LensComparison`.
    """
    parts = []
    for name, heads in {"logit lens": model.lens, **lenses}.items():
        own = {depth for depth in heads.branch_depths if depth}
        depths = [d for d in lens_depths(model) if (d in own) == (name == "branch")]
        parts.append(lens_rows(model, replies, name, heads, depths))
    return pd.concat(parts, ignore_index=True)


def lens_rows(
    model: HookedModel,
    replies: Sequence[Document],
    name: str,
    heads: ExitHead,
    depths: Sequence[int],
) -> pd.DataFrame:
    """Read replies out with one lens: its rows of `LensComparison`.

    Args:
        model: model of the lens.
        replies: replies on which the lens was not fitted.
        name: name of the lens.
        heads: the lens.
        depths: depths at which it is read.
    """
    result = probe(
        model,
        replies,
        depths=depths,
        heads=heads,
        statistics=["top1", "kl"],
        progress=progress_bar(name),
    )
    parts = []
    for modality in Modality:
        own = result[result.modality == modality]
        agreement, known = sums(own.agreement, own.document)
        kl, _ = sums(own.kl, own.document)
        for index, depth in enumerate(depths):
            rows = {"lens": name, "modality": modality.name.lower(), "depth": depth}
            columns = {"agreement": agreement, "kl": kl, "known": known}
            values = {column: each[:, index] for column, each in columns.items()}
            parts.append(pd.DataFrame(rows | {"document": np.unique(own.document)} | values))
    return pd.concat(parts, ignore_index=True)
