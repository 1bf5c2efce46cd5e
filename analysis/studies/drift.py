"""Drift between refreshes: an early-exit run against the full model.

*Readout divergence*: the logits that the run read out against the full model's, on the tokens of
the run.  It includes both the error of the exit head and the drift of the hidden state.
*State drift*: the run's hidden state against the full model's at the same depth and tokens, also as
the KL divergence of the same head on both.
*Trajectory drift*: the run's reply against the full model's reply to the same prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from eepolicy import HookedModel
from eepolicy.analysis.stats.bootstrap import Interval, Intervals, means
from eepolicy.analysis.stats.clustered import as_columns, sums
from eepolicy.analysis.studies.base import (
    BatchOptions,
    Measure,
    Study,
    Workspace,
    by_name,
    file_stem,
    progress_bar,
)
from eepolicy.analysis.studies.drift_meter import DriftItem, DriftMeter, refuse_branches
from eepolicy.analysis.style import outside_legend
from eepolicy.analysis.tables import markdown_table, read_table
from eepolicy.io import write_text
from eepolicy.model.threads import one_thread
from eepolicy.policies import parse_policy
from eepolicy.workers import OrderedWorkers, WorkerConfig

#: fill of a run -> colour and marker
FILLS = {"catch_up": ("#009E73", "o"), "propagate": ("#E69F00", "^"), "mask": ("#CC79A7", "s")}
EXIT = 0.7  # exit depth of the built-in runs, as a share of full depth


@dataclass(frozen=True)
class TokenMeasure(Measure):
    """A measure of one token, a column of `Drift.tokens`.

    Attributes:
        symlog: drawn on a scale that is linear up to 0.01 and logarithmic above, so that zero is
            visible.
    """

    symlog: bool = False


TOKEN_MEASURES = (
    TokenMeasure("kl", "KL from the full model", "nats", symlog=True),
    TokenMeasure("js", "Jensen-Shannon divergence", "nats", symlog=True),
    TokenMeasure("tv", "total variation"),
    TokenMeasure("top1", "top-1 agreement"),
    TokenMeasure("top_k", "shared among the 10 most likely tokens"),
    TokenMeasure(
        "drift_kl", "KL of the same head on the full model's\nhidden state", "nats", symlog=True
    ),
    TokenMeasure(
        "state",
        "relative distance from the full model's\nhidden state at the same depth",
        symlog=True,
    ),
    TokenMeasure("cosine", "cosine with the full model's last hidden state"),
)
#: columns of the table: means over speech at refreshes, over text, over speech at exits, and over
#: replies
MEASURES = (
    Measure("refresh_kl", "speech at a refresh: KL", "nats", digits=4),
    Measure("refresh_top1", "top-1 agreement", "%", 100.0, 1),
    Measure("refresh_state", "distance of the hidden state", "% of its norm", 100.0, 1),
    Measure("text_kl", "text: KL", "nats", digits=4),
    Measure("exit_kl", "speech at an exit: KL", "nats", digits=3),
    Measure("exit_drift_kl", "KL by drift", "nats", digits=3),
    Measure("exit_top1", "top-1 agreement", "%", 100.0, 1),
    Measure("same", "identical replies", "%", 100.0, 0),
    Measure("edit_share", "units edited", "%", 100.0, 1),
    Measure("acoustic", "acoustic distance"),
)


@dataclass(frozen=True, eq=False)
class Drift(Study):
    """Measurements of runs, each a policy with a fill.

    Attributes:
        tokens: one row for each token: `policy`, `fill`, `document`, `modality`, `chunk`, `phase`,
            `depth`, `since_refresh`, and the columns of `TOKEN_MEASURES`.
        replies: one row for each reply: `policy`, `fill`, `document`, `edit_share` (edit distance
            of the units from the full model's, as a share), `first_difference` (index of the first
            token that differs, nan for none), `same` (no token differs), `acoustic` (mean codebook
            distance of the units under dynamic time warping).
        speech_chunk: positions of a speech chunk.
    """

    tokens: pd.DataFrame
    replies: pd.DataFrame
    speech_chunk: int

    name: ClassVar[str] = "drift"
    title: ClassVar[str] = "Drift between refreshes"
    help: ClassVar[str] = "divergence from the full model by position, for schedules and fills"

    @classmethod
    def run(cls, workspace: Workspace) -> Drift:
        """Measure four schedules with each fill, exits at 0.7 of full depth."""
        model, depth = workspace.model, workspace.depth(EXIT)
        schedules = ("static", "spark:even", "spark:triple", "spark:FEEEEEEE")
        parts = []
        for policy in (f"{schedule}@{depth}" for schedule in schedules):
            for fill in FILLS:
                stem = file_stem(f"drift-{policy}-{fill}")
                files = [workspace.folder / f"{stem}-{part}.csv" for part in ("tokens", "replies")]
                if not files[1].exists():
                    options = BatchOptions(progress=progress_bar(f"{policy} {fill}"))
                    measured = drift(model, workspace.texts, [(policy, fill)], options)
                    write_text(files[0], measured.tokens.to_csv(index=False))
                    write_text(files[1], measured.replies.to_csv(index=False))
                parts.append([read_table(file) for file in files])
        tokens, replies = (pd.concat(part) for part in zip(*parts, strict=True))
        return cls(tokens, replies, model.layout.speech_chunk)

    @property
    def runs(self) -> list[tuple[str, str]]:
        """Policies and fills, in the order in which they ran."""
        return list(dict.fromkeys(zip(self.tokens.policy, self.tokens.fill, strict=True)))

    def speech(self, policy: str, fill: str) -> pd.DataFrame:
        """The speech tokens of a run."""
        chosen = (self.tokens.policy == policy) & (self.tokens.fill == fill)
        return self.tokens[chosen & (self.tokens.modality == "speech")]

    def by(self, column: str, measure: str, policy: str, fill: str) -> pd.DataFrame:
        """A measure on speech by position in the chunk, chunk, or distance from the last refresh.

        Args:
            column: `phase`, `chunk` or `since_refresh`.
            measure: name of a token measure.
            policy: policy of the run.
            fill: fill of the run.

        Returns:
            `value`, `low` and `high` (95 % bootstrap interval over replies) and `tokens`, indexed
            by the column.
        """
        speech = self.speech(policy, fill)
        rows = {}
        for value, part in speech.groupby(column):
            # replies without the value stay in the resampling, with no tokens
            values = np.where(speech[column].to_numpy() == value, speech[measure], np.nan)
            mean = means(*sums(values, speech.document.to_numpy()))
            rows[value] = [float(mean.value), float(mean.low), float(mean.high), len(part)]
        return pd.DataFrame.from_dict(
            rows, orient="index", columns=["value", "low", "high", "tokens"]
        ).rename_axis(column)

    def table(self) -> str:
        """Markdown, one row for each run.

        The KL at an exit includes the error of the exit head; the next column is the part due to
        drift.  A schedule with one exit depth never reads missing keys and values below it, so
        drift appears at full depth only: at refreshes, and in text.
        """
        rows = []
        for policy, fill in self.runs:
            summary = self.summary(policy, fill)
            rows.append([f"`{policy}`", fill, *(m.cell(summary[m.name]) for m in MEASURES)])
        return markdown_table(["policy", "fill", *(m.heading for m in MEASURES)], rows)

    def to_pandas(self) -> pd.DataFrame:
        """One row for each run: `policy`, `fill`, each measure with `..._low` and `..._high`."""
        rows = [{"policy": p, "fill": f} | as_columns(self.summary(p, f)) for p, f in self.runs]
        return pd.DataFrame(rows)

    def summary(self, policy: str, fill: str) -> dict[str, Intervals]:
        """`MEASURES` of a run by name: means over tokens or replies; nan for none."""
        speech = self.speech(policy, fill)
        refresh, exits = speech[speech.since_refresh == 0], speech[speech.since_refresh > 0]
        chosen = (self.tokens.policy == policy) & (self.tokens.fill == fill)
        text = self.tokens[chosen & (self.tokens.modality == "text")]
        replies = self.replies[(self.replies.policy == policy) & (self.replies.fill == fill)]
        return {
            "refresh_kl": _mean(refresh, "kl"),
            "refresh_top1": _mean(refresh, "top1"),
            "refresh_state": _mean(refresh, "state"),
            "text_kl": _mean(text, "kl"),
            "exit_kl": _mean(exits, "kl"),
            "exit_drift_kl": _mean(exits, "drift_kl"),
            "exit_top1": _mean(exits, "top1"),
            "same": _mean(replies, "same"),
            "edit_share": _mean(replies, "edit_share"),
            "acoustic": _mean(replies, "acoustic"),
        }

    def figure(self, measure: str = "kl") -> Figure:
        """A token measure by position in the chunk: one panel for each policy, one line a fill."""
        policies = list(dict.fromkeys(p for p, _ in self.runs))
        columns = min(2, len(policies))
        rows = -(-len(policies) // columns)
        figure, axes = plt.subplots(
            rows,
            columns,
            figsize=(1 + 3.9 * columns, 0.6 + 2.4 * rows),
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for ax, policy in zip(axes.flat, policies, strict=False):
            self.draw(ax, policy, measure)
        for ax in axes.flat[len(policies) :]:
            ax.set_axis_off()
        shown = by_name(TOKEN_MEASURES, measure)
        figure.supylabel(shown.heading, fontsize=9)
        if shown.symlog:
            axes[0, 0].set_ylim(-0.002)  # shared by all panels; after drawing, to keep the top
        outside_legend(figure, *axes.flat)
        return figure

    def draw(self, ax: Axes, policy: str, measure: str = "kl") -> None:
        """Draw one panel of `figure`; the positions of refreshes are shaded."""
        fills = [f for p, f in self.runs if p == policy]
        for number, fill in enumerate(fills):
            means_at = self.by("phase", measure, policy, fill)
            # the last chunk may be longer, but few replies reach its further positions
            means_at = means_at[means_at.index < self.speech_chunk]
            colour, marker = FILLS.get(fill, ("#777777", "x"))
            x = means_at.index + 0.12 * (number - (len(fills) - 1) / 2)
            ax.plot(x, means_at.value, color=colour, lw=1, label=fill, marker=marker, ms=4)
            ax.vlines(x, means_at.low, means_at.high, color=colour, lw=1)
        refreshes = self.speech(policy, fills[0]).groupby("phase").since_refresh
        share = refreshes.agg(lambda since: (since == 0).mean())
        shaded = share.index[(share > 0.5) & (share.index < self.speech_chunk)]
        for position in shaded:
            label = "refresh" if position == shaded[0] else None
            ax.axvspan(
                position - 0.5, position + 0.5, color="#000000", alpha=0.07, lw=0, label=label
            )
        if by_name(TOKEN_MEASURES, measure).symlog:
            ax.set_yscale("symlog", linthresh=0.01, linscale=0.5)
        ax.set_title(policy, fontsize=9, parse_math=False)
        ax.set_xlabel("position in the speech chunk")
        ax.set_xlim(-0.7, self.speech_chunk - 0.3)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def drift(
    model: HookedModel,
    questions: Sequence[str],
    runs: Sequence[tuple[str, str]],
    options: BatchOptions | None = None,
) -> Drift:
    """Decode with each policy and fill, and compare with the full model.

    Args:
        model: model with its exit heads.
        questions: questions in text.
        runs: spec strings of a policy and a fill.
        options: batch size, workers and others; progress wraps (policy, fill, index of the first
            question).

    Raises:
        EepolicyError: a policy exits at a branch, whose readout is not one of a single state.
    """
    options = options or BatchOptions()
    for policy, _ in runs:
        refuse_branches(model, parse_policy(policy).possible_depths(model.depth) or ())
    length, starts = options.max_new_tokens, options.starts(questions)
    make = partial(DriftMeter.make, options.load, length)
    batches = {start: tuple(questions[start : start + options.size]) for start in starts}
    work = [(policy, fill, start) for policy, fill in runs for start in starts]
    config = WorkerConfig.of(options.workers if options.load and len(work) > 1 else 0)
    tokens, replies = [], []
    with (
        one_thread(config.spreads),
        OrderedWorkers(config, make, DriftMeter(model, length)) as meters,
    ):
        results = meters.run([DriftItem(batch) for batch in batches.values()])
        full = {start: next(results).full for start in starts}
        results = meters.run(
            DriftItem(batches[start], start, (policy, fill), full[start])
            for policy, fill, start in work
        )
        for _ in options.progress(work):
            measured = next(results)
            tokens.append(measured.tokens)
            replies.append(measured.replies)
    return Drift(pd.concat(tokens), pd.concat(replies), model.layout.speech_chunk)


def _mean(rows: pd.DataFrame, column: str) -> Interval[Any]:
    if rows.empty:
        missing = np.array(np.nan)
        return Interval(missing, missing, missing)
    return means(*sums(rows[column].to_numpy(), rows.document.to_numpy()))
