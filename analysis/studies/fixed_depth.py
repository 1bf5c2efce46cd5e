"""Readout of every speech token at one fixed depth, with the full-depth history.

This is Table 1 of the paper (SPAR-K, arXiv 2603.09215).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from eepolicy import EepolicyError, HookedModel, Modality, ProbeResult, probe
from eepolicy.analysis.evaluation.metrics import Rater, Recognizer
from eepolicy.analysis.evaluation.scoring import word_errors
from eepolicy.analysis.stats.clustered import as_columns, from_columns
from eepolicy.analysis.studies.base import RatioMeasure, Study, Workspace, progress_bar
from eepolicy.analysis.style import COLOURS, depth_axis
from eepolicy.analysis.tables import markdown_table
from eepolicy.decode.output import Output
from eepolicy.speech.asr import Whisper
from eepolicy.speech.mos import DistillMos, missing_mos
from eepolicy.speech.vocoders import codebook_of, decode_at

MEASURES = (
    RatioMeasure("agreement", "same unit as the last layer", "%", 100.0, 1, "same", "units"),
    RatioMeasure("distance", "acoustic distance of the units", "", 1.0, 2, "distance", "units"),
    RatioMeasure("wer", "WER", "%", 100.0, 1, "errors", "words"),
    RatioMeasure("mos", "DistillMOS", "1 to 5", 1.0, 2, "mos", "rated"),
)
#: read-out depths, as shares of full depth
DEPTHS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True, eq=False)
class FixedDepthReadout(Study):
    """Quality of the speech if every unit is read out at one depth and nothing is fed back.

    Attributes:
        rows: one row for each depth and reply: `depth`, `document`, `units`, `same` (units equal
            to the last layer's), `distance` (sum of the codebook distances between the unit read
            out and the last layer's), `errors` and `words` (of the transcript against the reply's
            text), `mos` and `rated`; nan where nothing was measured.
    """

    rows: pd.DataFrame

    name: ClassVar[str] = "fixed_depth"
    title: ClassVar[str] = "One depth for every unit"
    help: ClassVar[str] = "agreement, WER and MOS if every unit is read out at one depth"
    needs_asr: ClassVar[bool] = True

    @classmethod
    def run(cls, workspace: Workspace) -> FixedDepthReadout:
        """Generate full-depth replies and read out each at several depths."""
        mos = None if missing_mos() else DistillMos()

        def measure() -> pd.DataFrame:
            progress = progress_bar("full-depth replies")
            return fixed_depth_readout(
                workspace.model,
                [
                    workspace.model.generate(question, do_sample=False)
                    for question in progress(workspace.texts)
                ],
                [workspace.depth(share) for share in DEPTHS],
                asr=Whisper(),
                mos=mos,
                progress=progress_bar("readouts"),
            ).rows

        return cls(workspace.stored("fixed-depth" if mos is None else "fixed-depth-mos", measure))

    @property
    def measures(self) -> list[RatioMeasure]:
        """The measures that have values."""
        return [m for m in MEASURES if m.is_in(self.rows)]

    def to_pandas(self) -> pd.DataFrame:
        """One row for each depth: each measure with `..._low` and `..._high`."""
        columns = {m.name: m.by(self.rows, "depth") for m in self.measures}
        rows = [
            {"depth": int(depth)} | as_columns({name: c[depth] for name, c in columns.items()})
            for depth in sorted(self.rows.depth.unique())
        ]
        return pd.DataFrame(rows)

    def table(self) -> str:
        """Markdown, one row for each depth."""
        columns = [m.by(self.rows, "depth") for m in self.measures]
        rows = [
            [
                str(depth),
                *(c[depth].text(m.digits) for m, c in zip(self.measures, columns, strict=True)),
            ]
            for depth in sorted(self.rows.depth.unique())
        ]
        return markdown_table(["depth", *(m.heading for m in self.measures)], rows)

    def figure(self) -> Figure:
        """Every measure by depth, bars 95 % intervals."""
        measures, frame = self.measures, self.to_pandas()
        figure, axes = plt.subplots(
            1,
            len(measures),
            figsize=(2.7 * len(measures), 2.8),
            squeeze=False,
            layout="constrained",
        )
        for ax, measure in zip(axes[0], measures, strict=True):
            intervals = from_columns(frame, measure.name)
            ax.errorbar(
                frame.depth,
                intervals.value,
                yerr=intervals.bars,
                color=COLOURS["speech"],
                marker="s",
                ms=4,
            )
            depth_axis(ax)
            ax.set_ylabel(measure.heading)
        return figure


def fixed_depth_readout(
    model: HookedModel,
    replies: Sequence[Output],
    depths: Sequence[int],
    *,
    asr: Recognizer | None = None,
    mos: Rater | None = None,
    progress: Callable[[Iterable[tuple[int, int]]], Iterable[tuple[int, int]]] = iter,
) -> FixedDepthReadout:
    """Read out each unit of full-depth replies at one depth after another.

    If the argmax of a depth is no unit, the most likely unit is played; it counts as different
    from the last layer's.

    Args:
        model: model with its exit heads and a vocoder.
        replies: replies at full depth.
        depths: depths to read out; full depth is added.
        asr: speech recognition; no WER without it.
        mos: speech quality predictor.
        progress: wraps (depth, reply index), to show progress.

    Raises:
        EepolicyError: the model's vocoder has no codebook.
    """
    if model.vocoder is None or codebook_of(model.vocoder) is None:
        raise EepolicyError(
            "this study needs the acoustics of the units: a vocoder with a codebook"
        )
    every = sorted({*depths, model.depth})
    result = probe(
        model, replies, depths=every, statistics=("top1",), hidden_states=every, dtype=torch.float32
    )
    rows = []
    for depth, number in progress([(d, i) for d in every for i in range(len(replies))]):
        here = result[(result.document == number) & (result.modality == Modality.SPEECH)]
        is_unit = model.layout.is_speech(torch.from_numpy(here.next.copy())).numpy()
        tokens = here[is_unit]
        states = torch.from_numpy(tokens.hidden_states[every.index(depth)].copy())
        if depth in model.branches:
            speech = replies[number].trace.modality == Modality.SPEECH
            states = _branch_states(model, replies[number], depth)[speech][is_unit]
        units, row = _read_out(model, tokens, states, depth)
        wave = decode_at(model.vocoder, units)
        row |= {"depth": depth, "document": number}
        row |= dict.fromkeys(("errors", "words", "mos", "rated"), np.nan)
        text = replies[number].text
        if asr is not None and text:
            row["errors"], row["words"] = word_errors(text, asr.transcribe(wave))
        if mos is not None and len(wave):
            row["mos"], row["rated"] = mos.rate(wave), 1
        rows.append(row)
    return FixedDepthReadout(pd.DataFrame(rows))


@torch.no_grad()
def units_at(model: HookedModel, states: torch.Tensor, depth: int) -> torch.Tensor:
    """The most likely units that the model's heads read out of states: (units, width) -> (units,).

    Args:
        model: model with its exit heads.
        states: (units, width), what the head of the depth reads.
        depth: depth of the states.
    """
    head = model.lens if depth == model.depth else model.heads
    logits = head.logits_over(states.to(model.device), depth, slice(*model.layout.speech))
    return logits.argmax(-1).cpu()


def _read_out(
    model: HookedModel, tokens: ProbeResult, states: torch.Tensor, depth: int
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Units read out at a depth, (units,), and how they differ from the last layer's.

    Args:
        model: model with its exit heads.
        tokens: probe of the positions before units.
        states: (units, width), what the head reads at these positions.
        depth: one of the probed depths.
    """
    codebook, first = codebook_of(model.vocoder), model.layout.speech[0]
    assert codebook is not None
    units = units_at(model, states, depth)
    last = torch.from_numpy(tokens.next.copy()) - first
    argmax = torch.from_numpy(tokens.top1[list(tokens.depths).index(depth)].copy()) - first
    return units, {
        "units": len(units),
        "same": int((argmax == last).sum()),
        "distance": float((codebook[units] - codebook[last]).norm(dim=-1).sum()),
    }


@torch.no_grad()
def _branch_states(model: HookedModel, reply: Output, depth: int) -> torch.Tensor:
    """States after a branch, at the positions that predict a reply: (tokens, width)."""
    ids = torch.cat([reply.prompt, reply.tokens]).to(model.device)
    hidden = next(islice(model.hidden_states(ids[None]), depth - 1, None))
    return model.branch_states(hidden, depth)[0, len(reply.prompt) - 1 : -1].cpu()
