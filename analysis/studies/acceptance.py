"""The dial from SPAR-K to lossless: what a refresh accepts of the tokens that waited for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from eepolicy import HookedModel, Modality
from eepolicy.analysis.evaluation.run import Recognizer
from eepolicy.analysis.evaluation.scoring import is_right, word_errors
from eepolicy.analysis.stats.clustered import Intervals, ratios_by
from eepolicy.analysis.stats.divergences import edit_share

#: from all that was read out early to nothing that the full model would not have said
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
#: what is measured: label, sums of which two columns, scale, digits
MEASURES = {
    "wer": ("word error rate, %", "errors", "words", 100.0, 1),
    "right": ("right in speech, %", "right", "judged", 100.0, 1),
    "edited": ("units edited against full depth, %", "edited", "replies", 100.0, 1),
    "kept": ("early units accepted when judged, %", "kept", "drafts", 100.0, 1),
    "calls": ("layer calls a token", "layer_calls", "tokens", 1.0, 2),
    "readouts": ("head calls a token", "readouts", "tokens", 1.0, 2),
}


@dataclass(frozen=True, eq=False)
class Dial:
    """Quality and cost at each setting.

    Attributes:
        rows: a row a setting and question: `accept`, `question`, the columns that `MEASURES` sums.
        policy: that read out early.
        full_depth: layers of the model.
    """

    rows: pd.DataFrame
    policy: str
    full_depth: int

    def measured(self, measure: str) -> dict[str, Intervals]:
        """A measure by setting, intervals over questions; full depth is the setting `full`."""
        _, top, bottom, scale, _ = MEASURES[measure]
        return ratios_by(self.rows, "accept", top, bottom, scale)

    def table(self) -> str:
        """Markdown, a line a setting."""
        columns = {m: self.measured(m) for m in MEASURES}
        lines = [
            "| accepted | " + " | ".join(label for label, *_ in MEASURES.values()) + " |",
            "|---" * (1 + len(MEASURES)) + "|",
        ]
        for accept in columns["wer"]:
            cells = [columns[m][accept].text(digits=MEASURES[m][4]) for m in MEASURES]
            lines.append(f"| `{accept}` | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Word errors, and units that differ from full depth's, against layer calls a token."""
        calls = self.measured("calls")
        figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.2), layout="constrained")
        shades = plt.get_cmap("cividis")(np.linspace(0, 0.9, len(calls)))
        for ax, measure in zip(axes, ("wer", "edited"), strict=True):
            found = self.measured(measure)
            for number, (accept, at) in enumerate(calls.items()):
                value = found[accept]
                ax.errorbar(
                    float(at.value),
                    float(value.value),
                    yerr=np.abs([[value.value - value.low], [value.high - value.value]]),
                    color="#000000" if accept == "full" else shades[number],
                    marker="*" if accept == "full" else "osD^vPXp<>h"[number % 11],
                    ls="none",
                    elinewidth=0.8,
                    label=accept,
                )
            ax.set_xlabel("layer calls a token")
            ax.set_ylabel(MEASURES[measure][0])
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center")
        return figure


def dial(
    model: HookedModel,
    questions: Sequence[Mapping[str, Any]],
    policy: str,
    *,
    settings: Sequence[str] = SETTINGS,
    asr: Recognizer | None = None,
    batch: int = 25,
    max_new_tokens: int = 400,
    progress: Callable[[Iterable[tuple[str, int]]], Iterable[tuple[str, int]]] = iter,
) -> Dial:
    """Answer the same questions at each setting of the dial, and at full depth.

    Args:
        model: which answers.
        questions: dicts with `question` and `keys`.
        policy: that reads out early, with the fill catch-up.
        settings: acceptances, see `eepolicy.decode.acceptance`.
        asr: speech recognition; without it there are no figures on what is heard.
        batch: replies side by side.
        max_new_tokens: most tokens of a reply.
        progress: wraps (setting, first question), to show them.
    """
    work = [(a, start) for a in ("full", *settings) for start in range(0, len(questions), batch)]
    rows: list[dict[str, Any]] = []
    full: list[list[int]] = []
    for accept, start in progress(work):
        part = questions[start : start + batch]
        outs = model.generate(
            [q["question"] for q in part],
            "full" if accept == "full" else policy,
            max_new_tokens,
            accept="all" if accept == "full" else accept,
        )
        for number, (question, out) in enumerate(zip(part, outs, strict=True), start=start):
            units = out.units.tolist()
            if accept == "full":
                full.append(units)
            errors, words, right, judged = np.nan, 0, np.nan, 0
            if asr is not None:
                heard = asr.transcribe(out.audio)
                errors, words = word_errors(out.text or "", heard)
                right, judged = is_right(heard, question["keys"]), 1
            trace = out.trace
            spoken = trace.modality == Modality.SPEECH
            early = spoken & (trace.depth < model.depth)
            rows.append(
                {
                    "accept": accept,
                    "question": question["question"],
                    "errors": errors,
                    "words": words,
                    "right": right,
                    "judged": judged,
                    "edited": edit_share(units, full[number]),
                    "replies": 1,
                    # a rejection leaves one token at full depth; drafts behind it were not judged
                    "kept": int(early.sum()),
                    "drafts": int(early.sum() + (spoken & (trace.draft_status == 2)).sum()),
                    "layer_calls": int(trace.layer_calls.sum()),
                    "readouts": int(trace.readouts.sum()),
                    "tokens": len(trace),
                }
            )
    return Dial(pd.DataFrame(rows), policy, model.depth)
