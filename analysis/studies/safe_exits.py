"""When is an exit safe? One exit at one position, everything else at full depth: what is heard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from eepolicy import EepolicyError
from eepolicy.analysis.stats.bootstrap import Interval, means
from eepolicy.analysis.stats.clustered import as_columns, sums
from eepolicy.analysis.studies.base import Study, Workspace
from eepolicy.analysis.studies.exit_outcomes import OUTCOMES, auc_table, with_outcomes
from eepolicy.analysis.studies.exit_predictors import CONTEXTS, PREDICTORS, with_predictors
from eepolicy.analysis.studies.exits_compared import (
    MEASURES,
    compare_costs,
    policies_of_equal_cost,
    score_policies,
)
from eepolicy.analysis.studies.single_exits import read_exits, stored_continuations
from eepolicy.analysis.style import families
from eepolicy.analysis.tables import markdown_table
from eepolicy.fitting.unit_classes import fit_unit_classes, unit_levels
from eepolicy.speech.asr import Whisper
from eepolicy.speech.vocoders import codebook_of

#: exit depth, as a share of full depth
EXIT = 0.3
#: dev questions whose replies the classes are fitted on
DEV = 200
#: colour of each outcome
_COLOURS = {"unit": "#777777", "sound": "#0072B2", "word": "#D55E00"}


@dataclass(frozen=True, eq=False)
class SafeExits(Study):
    """What single exits change, what predicts it, and policies made from it.

    Attributes:
        exits: one row for each unit of the full-depth replies, or a random subset of them: the
            columns of `read_exits`, `with_predictors` and `with_outcomes`.
        scores: rows of `score_policies`.
        depth: exit depth.
        threshold: acoustic distance above which the sound is another one.
    """

    exits: pd.DataFrame
    scores: pd.DataFrame
    depth: int
    threshold: float

    name: ClassVar[str] = "safe_exits"
    title: ClassVar[str] = "When is an exit safe?"
    help: ClassVar[str] = "what one exit changes in what is heard, and what predicts it"
    needs_asr: ClassVar[bool] = True
    by_default: ClassVar[bool] = False
    measured_time: ClassVar[str] = "18 minutes on one thread"

    @classmethod
    def run(cls, workspace: Workspace) -> SafeExits:
        """Exit once at each unit of the replies; then compare policies of equal cost."""
        model, asr, depth = workspace.model, Whisper(), workspace.depth(EXIT)
        codebook = codebook_of(model.vocoder)
        if codebook is None:
            raise EepolicyError("this study needs a vocoder with a codebook")
        patches = codebook.double().cpu().numpy()
        dev = workspace.development_replies(DEV)
        file = workspace.folder / "unit-classes.json"
        classes = fit_unit_classes(model, dev, save=file)
        level = unit_levels(model, dev, len(patches))
        folder = workspace.folder
        exits = read_exits(model, workspace.replies, depth, save=folder / "safe-exits-probe")
        dev_exits = with_predictors(
            read_exits(model, dev, depth, save=folder / "safe-exits-dev"),
            classes,
            patches,
            level,
        )
        continuations = stored_continuations(workspace, exits, asr)
        threshold = codebook_resolution(codebook)
        exits = with_predictors(exits, classes, patches, level)
        exits = with_outcomes(exits, continuations, threshold)
        policies = policies_of_equal_cost(model, dev_exits, depth, file)
        scores = score_policies(workspace, policies, asr)
        return cls(exits, scores, depth, threshold)

    @cached_property
    def aucs(self) -> Mapping[str, Mapping[str, Interval[float]]]:
        """AUC by predictor and outcome, see `auc_table`."""
        return auc_table(self.exits)

    @cached_property
    def costs(self) -> Mapping[str, Mapping[str, Interval[Any]]]:
        """Cost and word errors by policy, see `compare_costs`."""
        return compare_costs(self.scores)

    def rates(self) -> dict[str, dict[str, Interval[Any]]]:
        """Share of the positions, and of each outcome, by context; `all` first, per cent."""
        document = self.exits.document.to_numpy()
        rates = {}
        for context in ("all", *CONTEXTS):
            here = (self.exits.context == context).to_numpy() | (context == "all")
            rows = {"share": means(*sums(here.astype(float), document)).scaled(100)}
            for outcome in OUTCOMES:
                values = np.where(here, self.exits[outcome.name].to_numpy(float), np.nan)
                rows[outcome.name] = means(*sums(values, document)).scaled(100)
            differs = here & (self.exits.unit == 1).to_numpy()
            values = np.where(differs, self.exits.word.to_numpy(float), np.nan)
            rows["if_other"] = means(*sums(values, document)).scaled(100)
            rates[context] = rows
        return rates

    def to_pandas(self) -> pd.DataFrame:
        """One row for each predictor: AUC of each outcome with `..._low` and `..._high`."""
        return pd.DataFrame(
            [{"predictor": name} | as_columns(cells) for name, cells in self.aucs.items()]
        )

    def table(self) -> str:
        """Three Markdown tables: outcomes by acoustic context, AUC of the predictors, policies."""
        return "\n\n".join(self._tables())

    def _tables(self) -> Iterator[str]:
        differing = self.exits[self.exits.unit == 1]
        yield (
            f"{self.exits.document.nunique()} replies, one exit at depth {self.depth} at each of "
            f"{len(self.exits)} units; {len(differing)} exits have another unit. The sound is "
            f"another one above an acoustic distance of {self.threshold:.1f}."
        )
        columns = [o.label for o in OUTCOMES]
        yield "Outcome of one exit by acoustic context, % of the positions:\n\n" + markdown_table(
            ["context", "share", *columns, "another word, of other units"],
            [[name, *(c.text(1) for c in row.values())] for name, row in self.rates().items()],
        )
        yield "AUC of each predictor, for a high value:\n\n" + markdown_table(
            ["predictor", "known before", *columns, "another word, of other units"],
            [
                [p.label, "yes" if p.before else "no", *(c.text(2) for c in cells.values())]
                for p, cells in zip(PREDICTORS, self.aucs.values(), strict=True)
            ],
        )
        questions = self.scores.question.nunique()
        yield f"Policies, on the same {questions} questions:\n\n" + markdown_table(
            ["policy", *(m.heading for m in MEASURES)],
            [
                [f"`{policy}`", *(m.cell(row[m.name]) for m in MEASURES)]
                for policy, row in self.costs.items()
            ],
        )

    def figure(self) -> Figure:
        """Outcomes by acoustic context, AUC of the predictors, and word errors against cost."""
        figure, axes = plt.subplots(
            1,
            3,
            figsize=(12, 4.2),
            layout="constrained",
            gridspec_kw={"width_ratios": (1, 1.1, 1.2)},
        )
        self._draw_contexts(axes[0])
        self._draw_aucs(axes[1])
        self._draw_policies(axes[2])
        return figure

    def _draw_contexts(self, ax: Axes) -> None:
        rates = self.rates()
        for number, outcome in enumerate(OUTCOMES):
            cells = [row[outcome.name] for row in rates.values()]
            at = np.arange(len(rates)) + 0.27 * (number - 1)
            bars = np.concatenate([c.bars.reshape(2, 1) for c in cells], 1)
            ax.bar(
                at,
                [float(c.value) for c in cells],
                0.25,
                yerr=bars,
                color=_COLOURS[outcome.name],
                label=outcome.label,
                error_kw={"lw": 1},
            )
        ax.set_xticks(range(len(rates)), list(rates))
        ax.set_ylabel("exits, %")
        ax.set_title("What one exit changes", loc="left", fontsize=9)
        ax.set_ylim(top=1.25 * ax.get_ylim()[1])
        ax.legend(fontsize=7.5, loc="upper left", ncols=2)

    def _draw_aucs(self, ax: Axes) -> None:
        for number, predictor in enumerate(PREDICTORS):
            for shift, outcome in ((-0.15, "unit"), (0.15, "word")):
                cell = self.aucs[predictor.name][outcome]
                ax.errorbar(
                    cell.value,
                    number + shift,
                    xerr=cell.bars[:, None],
                    color=_COLOURS[outcome],
                    marker="o" if outcome == "word" else "s",
                    ms=4,
                    lw=1,
                )
        ax.axvline(0.5, color="#000000", lw=0.8)
        ax.set_yticks(range(len(PREDICTORS)), [p.label for p in PREDICTORS], fontsize=7.5)
        ax.invert_yaxis()
        ax.set_xlabel("AUC, 0.5 is chance")
        ax.set_title("What predicts it", loc="left", fontsize=9)

    def _draw_policies(self, ax: Axes) -> None:
        policies = list(self.costs)
        for policy, (colour, marker) in zip(policies, families(policies), strict=True):
            row = self.costs[policy]
            ax.errorbar(
                float(row["calls"].value),
                float(row["over_full"].value),
                yerr=row["over_full"].bars.reshape(2, 1),
                color=colour,
                marker=marker,
                ms=6,
                lw=1,
                ls="none",
                label=policy,
            )
        ax.axhline(0, color="#000000", lw=0.8)
        ax.set_xlabel("layer calls a token")
        ax.set_ylabel("WER over full depth, points")
        ax.set_title("Policies", loc="left", fontsize=9)
        ax.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1.02, 0.5))


def codebook_resolution(codebook: Tensor) -> float:
    """Median distance of a unit from the next unit in the codebook, (units, features).

    A reply whose units are all replaced by their neighbours has about this acoustic distance.
    """
    distances = torch.cdist(codebook.double(), codebook.double())
    return float(distances.fill_diagonal_(torch.inf).amin(1).median())
