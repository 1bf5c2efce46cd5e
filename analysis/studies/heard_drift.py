"""Trajectory drift in what is heard: words, sound and prosody of replies, by time in the reply.

Replies of a policy are compared with the full-depth replies to the same prompts.  Words are those
of transcripts.  Sound and prosody are compared where both replies have the same text, on units
that dynamic time warping has aligned.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eepolicy.analysis.stats.bootstrap import paired_difference
from eepolicy.analysis.stats.clustered import as_columns, from_columns
from eepolicy.analysis.studies.base import RatioMeasure, Study, Workspace, progress_bar
from eepolicy.analysis.studies.heard_replies import WINDOWS, Heard, hear, heard_drift
from eepolicy.analysis.style import families, outside_legend
from eepolicy.analysis.tables import MISSING, markdown_table, with_interval
from eepolicy.speech.asr import Whisper

#: policies that are compared: exits through branches, then exits through tuned lenses with a mean
#: speech depth of about 16, from short periods to none
POLICIES = (
    "static@4",
    "static@6",
    "spark:triple@14",
    "spark:FEEEE@15",
    "drift>0.3@14",
    "static@16",
)
#: policies that the figure shows by time in the reply
SHOWN = ("full", "static@4", "static@6", "spark:triple@14", "static@16")

#: largest difference in layer calls a token between a policy and its static exit
NEAR = 1.0

BY_TIME = (
    RatioMeasure("wer", "WER", "%", 100.0, 1, "errors", "words"),
    RatioMeasure("acoustic", "acoustic distance", "", 1.0, 2, "distance", "pairs"),
    RatioMeasure("pitch", "pitch difference", "semitones", 1.0, 2, "semitones", "voiced"),
)
MEASURES = (
    RatioMeasure("calls", "layer calls a token", "", 1.0, 2, "calls", "tokens"),
    BY_TIME[0],
    RatioMeasure("changed", "heard words that differ", "%", 100.0, 1, "changed", "heard"),
    RatioMeasure("same_text", "same text", "%", 100.0, 0, "same", "replies"),
    *BY_TIME[1:],
    RatioMeasure("duration", "difference in duration", "%", 100.0, 1, "longer", "seconds"),
)


@dataclass(frozen=True, eq=False)
class HeardDrift(Study):
    """Words, sound and prosody of replies against those at full depth.

    Attributes:
        rows: one row for each policy, reply and window: `policy`, `document`, `window`, the sums
            `words` and `errors` (of the reply's text against its transcript), `pairs` and
            `distance` (of aligned units), `voiced` and `semitones` (of aligned voiced units).  The
            first window has the values of the whole reply: `calls`, `tokens`, `heard` and
            `changed` (words of the transcript at full depth, and errors against it), `replies`,
            `same` (the text is that at full depth), `seconds` and `longer` (duration at full depth,
            and size of the difference from it).  What needs the same text is nan without it.
    """

    rows: pd.DataFrame

    name: ClassVar[str] = "heard_drift"
    title: ClassVar[str] = "Drift in what is heard"
    help: ClassVar[str] = "words, sound and prosody against full depth, by time in the reply"
    needs_asr: ClassVar[bool] = True
    by_default: ClassVar[bool] = False

    @classmethod
    def run(cls, workspace: Workspace) -> HeardDrift:
        """Measure full depth and `POLICIES`; each policy is stored by itself."""
        asr, full = Whisper(), list[Heard]()

        def measured(policy: str) -> pd.DataFrame:
            if not full:
                full.extend(hear(workspace.model, workspace.texts, "full", asr))
            replies = full
            if policy != "full":
                replies = hear(workspace.model, workspace.texts, policy, asr)
            return heard_drift(workspace.model, replies, full).assign(policy=policy)

        parts = []
        for policy in progress_bar("policies")(("full", *POLICIES)):
            parts.append(workspace.stored(f"heard-{policy}", partial(measured, policy)))
        return cls(pd.concat(parts, ignore_index=True))

    @property
    def policies(self) -> list[str]:
        """Policies in the order in which they ran, full depth first."""
        return list(self.rows.policy.unique())

    @property
    def replies(self) -> pd.DataFrame:
        """Sums over the windows of each reply."""
        sums = self.rows.groupby(["policy", "document"], sort=False).sum(min_count=1)
        return sums.drop(columns="window").reset_index()

    def to_pandas(self) -> pd.DataFrame:
        """One row for each policy: each measure with `..._low` and `..._high`."""
        columns = {m.name: m.by(self.replies, "policy") for m in MEASURES}
        return pd.DataFrame(
            {"policy": policy} | as_columns({name: by[policy] for name, by in columns.items()})
            for policy in self.policies
        )

    def by_window(self, policy: str) -> pd.DataFrame:
        """One row for each window of a policy: `BY_TIME` with `..._low` and `..._high`."""
        rows = self.rows[self.rows.policy == policy]
        columns = {m.name: m.by(rows, "window") for m in BY_TIME}
        return pd.DataFrame(
            {"window": window} | as_columns({name: by[window] for name, by in columns.items()})
            for window in range(WINDOWS)
        )

    def table(self) -> str:
        """Markdown: whole replies, rows against static exits, and windows of time."""
        return "\n\n".join(
            [
                f"Whole replies:\n\n{self._whole_table()}",
                f"Minus the static exit of nearly the same cost:\n\n{self._cost_table()}",
                f"By second since the start of the reply:\n\n{self._window_table()}",
            ]
        )

    def _whole_table(self) -> str:
        columns = [m.by(self.replies, "policy") for m in MEASURES]
        rows = [
            [f"`{p}`", *(c[p].text(m.digits) for m, c in zip(MEASURES, columns, strict=True))]
            for p in self.policies
        ]
        return markdown_table(["policy", *(m.heading for m in MEASURES)], rows)

    def _cost_table(self) -> str:
        sums = {p: part for p, part in self.replies.groupby("policy", sort=False)}
        calls = {p: part.calls.sum() / part.tokens.sum() for p, part in sums.items()}
        exits = [p for p in self.policies if p.startswith("static")]
        rows = []
        for policy in self.policies:
            if policy in exits or policy == "full" or not exits:
                continue
            near = min(exits, key=lambda p: abs(calls[p] - calls[policy]))
            if abs(calls[near] - calls[policy]) > NEAR:
                continue
            cells = [f"`{policy}`", f"`{near}`", f"{calls[policy] - calls[near]:+.2f}"]
            for m in (MEASURES[1], MEASURES[2]):
                pair = sums[policy], sums[near]
                difference = paired_difference(
                    (pair[0][m.numerator], pair[1][m.numerator]),
                    (pair[0][m.denominator], pair[1][m.denominator]),
                )
                bounds = (difference.low, difference.high)
                cells.append(with_interval(difference.value, bounds, m.digits, m.scale, sign=True))
            rows.append(cells)
        headings = ["policy", "static exit", "layer calls more"]
        return markdown_table([*headings, "WER, points", "heard words that differ, points"], rows)

    def _window_table(self) -> str:
        spans = [*(f"{w} to {w + 1} s" for w in range(WINDOWS - 1)), f"from {WINDOWS - 1} s on"]
        rows = []
        for policy in self.policies:
            part = self.rows[self.rows.policy == policy]
            for measure in BY_TIME:
                by = measure.by(part, "window")
                cells = [by[w].text(measure.digits) if w in by else MISSING for w in range(WINDOWS)]
                rows.append([f"`{policy}`", measure.heading, *cells])
        return markdown_table(["policy", "", *spans], rows)

    def figure(self) -> Figure:
        """`BY_TIME` by window for some policies, and WER by layer calls for all."""
        figure, axes = plt.subplots(1, 4, figsize=(12.5, 3.2), layout="constrained")
        shown = [p for p in SHOWN if p in self.policies]
        styles = dict(zip(self.policies, families(self.policies), strict=True))
        for ax, measure in zip(axes, BY_TIME, strict=False):
            for number, policy in enumerate(shown):
                shift = 0.08 * (number - (len(shown) - 1) / 2)
                self._draw_windows(ax, measure, policy, (shift, *styles[policy]))
            ax.set_xlabel("second of the reply")
            ax.set_xticks(range(WINDOWS), [*map(str, range(1, WINDOWS)), f"{WINDOWS} on"])
            ax.set_ylabel(measure.heading)
        frame = self.to_pandas()
        for policy, part in frame.groupby("policy", sort=False):
            colour, marker = styles[str(policy)]
            axes[-1].errorbar(
                part.calls,
                from_columns(part, "wer").value,
                yerr=from_columns(part, "wer").bars,
                color=colour,
                marker=marker,
                ms=5,
                lw=0,
                elinewidth=1,
                label=policy,
            )
        axes[-1].set_xlabel("layer calls a token")
        axes[-1].set_ylabel("WER, %")
        outside_legend(figure, axes[-1])
        return figure

    def _draw_windows(
        self, ax: Axes, measure: RatioMeasure, policy: str, style: tuple[float, str, str]
    ) -> None:
        frame = self.by_window(policy)
        intervals = from_columns(frame, measure.name)
        shift, colour, marker = style
        ax.errorbar(
            frame.window + shift,
            intervals.value,
            yerr=intervals.bars,
            color=colour,
            marker=marker,
            ms=4,
            lw=1,
            label=policy,
        )
