"""Acceptance rules from SPAR-K (accept all drafts) to lossless (accept exact matches)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from eepolicy import DraftStatus, HookedModel, Modality
from eepolicy.analysis.evaluation.metrics import Recognizer
from eepolicy.analysis.evaluation.scoring import is_right, word_errors
from eepolicy.analysis.stats.bootstrap import Interval
from eepolicy.analysis.stats.clustered import as_columns
from eepolicy.analysis.stats.divergences import edit_share
from eepolicy.analysis.studies.base import (
    BatchOptions,
    RatioMeasure,
    Study,
    Workspace,
    by_name,
    progress_bar,
)
from eepolicy.analysis.style import outside_legend
from eepolicy.analysis.tables import markdown_table
from eepolicy.decode.output import Output
from eepolicy.speech.asr import Whisper
from eepolicy.speech.mel import SAMPLE_RATE

#: from all drafts to only those that the full model would have generated
SETTINGS = (
    "all",
    "acoustic:40",
    "acoustic:20",
    "ratio:0.1",
    "ratio:0.5",
    "top:5",
    "top:2",
    "exact",
)
EXIT = 0.7  # depth of the drafts, as a share of full depth
MEASURES = (
    RatioMeasure("wer", "WER", "%", 100.0, 1, "errors", "words"),
    RatioMeasure("accuracy", "accuracy in speech", "%", 100.0, 1, "right", "scored"),
    RatioMeasure(
        "edit_share", "units edited against full depth", "%", 100.0, 1, "edit_share", "replies"
    ),
    RatioMeasure("accepted", "verified drafts accepted", "%", 100.0, 1, "accepted", "verified"),
    RatioMeasure("layer_calls", "layer calls a token", "", 1.0, 2, "layer_calls", "tokens"),
    RatioMeasure("head_calls", "head calls a token", "", 1.0, 2, "readouts", "tokens"),
)


@dataclass(frozen=True, eq=False)
class AcceptanceSweep(Study):
    """Quality and cost of each acceptance rule.

    Attributes:
        rows: one row for each rule and question: `accept`, `question`, and the columns that
            `MEASURES` sums; the rule `full` is full depth.
        policy: policy of the drafts.
    """

    rows: pd.DataFrame
    policy: str

    name: ClassVar[str] = "acceptance"
    title: ClassVar[str] = "From SPAR-K to lossless"
    help: ClassVar[str] = "WER, accuracy and cost of each acceptance rule for early tokens"
    needs_asr: ClassVar[bool] = True

    @classmethod
    def run(cls, workspace: Workspace) -> AcceptanceSweep:
        """Sweep the rules with `spark:triple` at 0.7 of full depth."""
        policy = f"spark:triple@{workspace.depth(EXIT)}"

        def measure() -> pd.DataFrame:
            return acceptance_sweep(
                workspace.model,
                workspace.questions,
                policy,
                asr=Whisper(),
                options=BatchOptions(progress=progress_bar("acceptance rules")),
            ).rows

        return cls(workspace.stored("acceptance", measure), policy)

    def by_rule(self, measure: str) -> dict[str, Interval[Any]]:
        """A measure by acceptance rule, intervals over questions."""
        return by_name(MEASURES, measure).by(self.rows, "accept")

    def table(self) -> str:
        """Markdown, one row for each rule."""
        columns = [m.by(self.rows, "accept") for m in MEASURES]
        rows = [
            [
                f"`{accept}`",
                *(c[accept].text(m.digits) for m, c in zip(MEASURES, columns, strict=True)),
            ]
            for accept in columns[0]
        ]
        return markdown_table(["acceptance rule", *(m.heading for m in MEASURES)], rows)

    def to_pandas(self) -> pd.DataFrame:
        """One row for each rule: each measure with `..._low` and `..._high`."""
        columns = {m.name: m.by(self.rows, "accept") for m in MEASURES}
        rows = [
            {"accept": accept} | as_columns({name: c[accept] for name, c in columns.items()})
            for accept in columns["wer"]
        ]
        return pd.DataFrame(rows)

    def figure(self) -> Figure:
        """WER and edited units against layer calls a token."""
        calls = self.by_rule("layer_calls")
        figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.2), layout="constrained")
        shades = plt.get_cmap("cividis")(np.linspace(0, 0.9, len(calls)))
        for ax, measure in zip(axes, ("wer", "edit_share"), strict=True):
            values = self.by_rule(measure)
            for number, (accept, cost) in enumerate(calls.items()):
                y = values[accept]
                ax.errorbar(
                    float(cost.value),
                    float(y.value),
                    yerr=np.abs([[y.value - y.low], [y.high - y.value]]),
                    color="#000000" if accept == "full" else shades[number],
                    marker="*" if accept == "full" else "osD^vPXp<>h"[number % 11],
                    ls="none",
                    elinewidth=0.8,
                    label=accept,
                )
            ax.set_xlabel(by_name(MEASURES, "layer_calls").heading)
            ax.set_ylabel(by_name(MEASURES, measure).heading)
        outside_legend(figure, axes[0], loc="outside right center", ncols=1)
        return figure


def acceptance_sweep(
    model: HookedModel,
    questions: Sequence[Mapping[str, Any]],
    policy: str,
    *,
    settings: Sequence[str] = SETTINGS,
    asr: Recognizer | None = None,
    options: BatchOptions | None = None,
) -> AcceptanceSweep:
    """Answer the same questions with each acceptance rule, and at full depth.

    Args:
        model: model that speaks.
        questions: dicts with `question` and `keys`.
        policy: policy of the drafts; the fill is catch-up.
        settings: acceptance rules, see `eepolicy.decode.acceptance`.
        asr: speech recognition; no WER and no accuracy without it.
        options: batch size and others; progress wraps (rule, index of the first question).
    """
    options = options or BatchOptions()
    work = [(a, start) for a in ("full", *settings) for start in options.starts(questions)]
    rows: list[dict[str, Any]] = []
    full: list[list[int]] = []  # units of each full-depth reply
    for accept, start in options.progress(work):
        part = questions[start : start + options.size]
        outs = model.generate(
            [q["question"] for q in part],
            "full" if accept == "full" else policy,
            options.max_new_tokens,
            accept="all" if accept == "full" else accept,
            do_sample=False,
        )
        if accept == "full":
            full += [out.units.tolist() for out in outs]
        for number, (question, out) in enumerate(zip(part, outs, strict=True), start=start):
            rows.append(
                {"accept": accept, "question": question["question"]}
                | _scores(out, question["keys"], asr)
                | {"edit_share": edit_share(out.units.tolist(), full[number]), "replies": 1}
                | _costs(out)
            )
    return AcceptanceSweep(pd.DataFrame(rows), policy)


def _scores(out: Output, keys: Sequence[str], asr: Recognizer | None) -> dict[str, Any]:
    """Word errors and correctness of a reply by its transcript; nan without one."""
    if asr is None:
        return {"errors": np.nan, "words": 0, "right": np.nan, "scored": 0}
    transcript = asr.transcribe(out.audio_at(SAMPLE_RATE))
    errors, words = word_errors(out.text or "", transcript)
    return {"errors": errors, "words": words, "right": is_right(transcript, keys), "scored": 1}


def _costs(out: Output) -> dict[str, int]:
    """Calls and drafts of a reply."""
    trace = out.trace
    speech = trace.modality == Modality.SPEECH
    early = speech & (trace.depth < trace.full_depth)
    replaced = trace.draft_status == DraftStatus.REPLACEMENT
    # a rejection leaves one token at full depth; the drafts after it were never verified
    return {
        "accepted": int(early.sum()),
        "verified": int(early.sum() + (speech & replaced).sum()),
        "layer_calls": int(trace.layer_calls.sum()),
        "readouts": int(trace.readouts.sum()),
        "tokens": len(trace),
    }
