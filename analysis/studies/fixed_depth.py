"""The paper's Table 1: every speech token read out at one depth, with the full-depth history."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from eepolicy import EepolicyError, HookedModel, Modality, probe
from eepolicy.analysis.evaluation.run import Rater, Recognizer
from eepolicy.analysis.evaluation.scoring import word_errors
from eepolicy.analysis.stats.clustered import Intervals, ratios_by
from eepolicy.analysis.style import COLOURS, depth_axis
from eepolicy.decode.output import Output
from eepolicy.speech.vocoders import codebook_of

#: what is measured: label, sums of which two columns, scale, digits
MEASURES = {
    "agreement": ("same unit as the last layer, %", "same", "units", 100.0, 1),
    "distance": ("distance of the units' sounds", "apart", "units", 1.0, 2),
    "wer": ("word error rate, %", "errors", "words", 100.0, 1),
    "mos": ("DistillMOS (1 to 5)", "mos", "rated", 1.0, 2),
}


@dataclass(frozen=True, eq=False)
class Oracle:
    """What is heard when each unit is named by one depth, nothing being fed back.

    Attributes:
        rows: a row a depth and reply: `depth`, `document`, `units`, `same` (units that are the last
            layer's), `apart` (sum of the distances between the sounds of the named unit and of the
            last layer's), `errors` and `words` (of the transcript against the reply's text), `mos`
            and `rated`; nan where nothing was measured.
    """

    rows: pd.DataFrame

    def measured(self, measure: str) -> pd.DataFrame:
        """A measure by depth: `value`, `low`, `high`, intervals over replies."""
        _, top, bottom, scale, _ = MEASURES[measure]
        found = ratios_by(self.rows, "depth", top, bottom, scale)
        rows = {d: [float(x) for x in (one.value, one.low, one.high)] for d, one in found.items()}
        return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high"])

    def table(self) -> str:
        """Markdown, a line a depth."""
        held = [m for m, (_, top, *_) in MEASURES.items() if self.rows[top].notna().any()]
        columns = {m: self.measured(m) for m in held}
        lines = [
            "| depth | " + " | ".join(MEASURES[m][0] for m in held) + " |",
            "|---" * (1 + len(held)) + "|",
        ]
        for depth in sorted(self.rows.depth.unique()):
            cells = [
                Intervals(*columns[m].loc[depth].to_numpy()).text(digits=MEASURES[m][4])
                for m in held
            ]
            lines.append(f"| {depth} | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Every measure by depth, bars 95 % intervals."""
        held = [m for m, (_, top, *_) in MEASURES.items() if self.rows[top].notna().any()]
        figure, axes = plt.subplots(
            1, len(held), figsize=(2.7 * len(held), 2.8), squeeze=False, layout="constrained"
        )
        for ax, measure in zip(axes[0], held, strict=True):
            found = self.measured(measure)
            bars = np.stack([found.value - found.low, found.high - found.value])
            ax.errorbar(
                found.index,
                found.value,
                yerr=bars.clip(0),
                color=COLOURS["speech"],
                marker="s",
                ms=4,
            )
            depth_axis(ax)
            ax.set_ylabel(MEASURES[measure][0])
        return figure


def oracle(
    model: HookedModel,
    replies: Sequence[Output],
    depths: Sequence[int],
    *,
    asr: Recognizer | None = None,
    mos: Rater | None = None,
    progress: Callable[[Iterable[tuple[int, int]]], Iterable[tuple[int, int]]] = iter,
) -> Oracle:
    """Name each unit of full-depth replies by one depth after another.

    Where a depth's likeliest token is no unit, the likeliest unit stands in its place; it counts as
    another one than the last layer's.

    Args:
        model: with its exit heads and a vocoder.
        replies: at full depth.
        depths: to read out; full depth is added.
        asr: speech recognition; without it there is no word error rate.
        mos: speech rating.
        progress: wraps (depth, reply), to show them.
    """
    sounds, first = codebook_of(model.vocoder), model.layout.speech[0]
    if model.vocoder is None or sounds is None:
        raise EepolicyError("the study needs the sounds of the units: a vocoder with a codebook")
    every = sorted({*depths, model.depth})
    result = probe(
        model, replies, depths=every, statistics=("top1",), hidden_states=every, dtype=torch.float32
    )
    rows = []
    for depth, number in progress([(d, i) for d in every for i in range(len(replies))]):
        here = result[(result.document == number) & (result.modality == Modality.SPEECH)]
        spoken = model.layout.is_speech(torch.from_numpy(here.next.copy())).numpy()
        here = here[spoken]
        states = torch.from_numpy(here.hidden_states[every.index(depth)].copy())
        head = model.lens if depth == model.depth else model.heads
        with torch.no_grad():
            logits = head.logits_over(
                states.to(model.model.device), depth, slice(*model.layout.speech)
            )
        units = logits.argmax(-1).cpu()
        wanted = torch.from_numpy(here.next.copy()) - first
        named = torch.from_numpy(here.top1[list(result.depths).index(depth)].copy()) - first
        wave = model.vocoder.decode(units)
        row: dict[str, float] = {
            "depth": depth,
            "document": number,
            "units": len(units),
            "same": int((named == wanted).sum()),
            "apart": float((sounds[units] - sounds[wanted]).norm(dim=-1).sum()),
            "errors": np.nan,
            "words": np.nan,
            "mos": np.nan,
            "rated": np.nan,
        }
        text = replies[number].text
        if asr is not None and text:
            row["errors"], row["words"] = word_errors(text, asr.transcribe(wave))
        if mos is not None and len(wave):
            row["mos"], row["rated"] = mos.rate(wave), 1
        rows.append(row)
    return Oracle(pd.DataFrame(rows))
