"""The sixteen rows of the paper's Table 2 (arXiv 2603.09215), run again beside the paper's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eepolicy.analysis.evaluation.records import Record, RunFolder
from eepolicy.analysis.evaluation.run import answered, table
from eepolicy.errors import EepolicyError
from eepolicy.hooked import HookedModel
from eepolicy.modality import Modality
from eepolicy.policies import Step, parse_policy

#: bootstrap
RESAMPLES = 2000
#: tasks, in the paper's order
TASKS = ("alpacaeval", "llamaquestions", "triviaqa", "webquestions")


@dataclass(frozen=True)
class Row:
    """One row of the paper.

    Attributes:
        label: as the paper has it.
        policy: spec string of it here.
        scores: of the four tasks, %.
        mos: by UTMOS-v2.
        wer: of the transcript against the model's own text, %.
        text_depth: mean.
        speech_depth: mean, as printed.
    """

    label: str
    policy: str
    scores: tuple[float, float, float, float]
    mos: float
    wer: float
    text_depth: float
    speech_depth: float


#: by card of the model; what Fixed does with missing keys and values the paper leaves open: here
#: they are caught up in text, which always runs all layers
ROWS: dict[str, tuple[Row, ...]] = {
    "step-audio-2-mini": (
        Row("S1 full", "full", (45.98, 68.00, 49.10, 53.80), 3.710, 1.51, 28, 28),
        Row("S2 Fixed(25)", "static@25", (35.58, 67.33, 46.70, 50.90), 3.058, 3.40, 28, 25),
        Row("S3 Conf(26)", "entropy<0.1@26", (24.92, 65.00, 28.50, 47.60), 1.651, 11.01, 28, 26.07),
        Row("S4 Even(22)", "spark:even@22", (45.28, 63.00, 49.20, 55.40), 3.643, 1.58, 28, 25),
        Row("S5 Odd(22)", "spark:odd@22", (45.98, 67.00, 48.70, 53.30), 3.650, 2.19, 28, 25),
        Row("S6 Triple(22)", "spark:triple@22", (46.33, 67.33, 51.00, 56.50), 3.668, 1.51, 28, 25),
    ),
    "glm-4-voice": (
        Row("G1 full", "full", (51.06, 61.33, 44.90, 52.20), 2.982, 4.31, 40, 40),
        Row("G2 Fixed(38)", "static@38", (44.17, 65.33, 45.00, 51.40), 2.662, 43.60, 40, 38),
        Row("G3 Conf(36)", "entropy<0.5@36", (50.20, 64.67, 45.70, 51.00), 2.866, 7.62, 40, 37.03),
        Row("G4 Even(36)", "spark:even@36", (50.70, 60.00, 42.00, 50.60), 2.950, 5.36, 40, 38),
        Row("G5 Odd(36)", "spark:odd@36", (49.75, 58.33, 43.00, 50.30), 2.982, 5.06, 40, 38),
        Row("G6 Triple(37)", "spark:triple@37", (47.84, 63.33, 44.70, 51.90), 2.909, 5.77, 40, 38),
        Row("G7 Even(33)", "spark:even@33", (48.19, 57.33, 41.80, 48.50), 2.981, 7.13, 40, 36.5),
        Row("G8 Even(35)", "spark:even@35", (49.45, 61.00, 41.20, 49.50), 2.942, 6.44, 40, 37),
        Row(
            "G9 text Even(36)",
            "text=spark:even@36",
            (10.00, 42.00, 0.00, 21.70),
            2.979,
            12.80,
            38,
            40,
        ),
        Row(
            "G10 text Conf(36), speech Even(36)",
            "text=entropy<0.5@36,speech=spark:even@36",
            (48.64, 59.00, 38.50, 48.30),
            2.949,
            5.15,
            38.02,
            38,
        ),
    ),
}

#: cards of the models that the paper decodes greedily; it samples with the others
GREEDY = ("glm-4-voice",)


def rows_of(model: HookedModel) -> tuple[Row, ...]:
    """The paper's rows of a model.

    Raises:
        EepolicyError: the paper has none of it.
    """
    name = model.card.name if model.card else None
    if name not in ROWS:
        raise EepolicyError(
            f"the paper's Table 2 has rows of {' and '.join(ROWS)}; this model is "
            f"{name or 'neither'}"
        )
    return ROWS[name]


def head_depths(rows: Sequence[Row]) -> tuple[int, ...]:
    """Depths below full at which the rows may read out, for which heads are needed."""
    full, phase = int(rows[0].speech_depth), torch.arange(6)
    found: set[int] = set()
    for row in rows:
        policy = parse_policy(row.policy)
        for modality in Modality:
            here = torch.full_like(phase, modality)
            step = Step(here, phase, phase, phase, phase, full)
            found |= {*policy.depths(step).tolist(), *policy.candidate_depths(step)}
    return tuple(sorted(found - {full}))


@dataclass(frozen=True, eq=False)
class Table2:
    """The paper's rows run again.

    Attributes:
        rows: of the paper.
        tasks: that were asked, of `TASKS`.
        scores: task: policy: (value, low, high), shares.
        means: policy: (value, low, high) over the tasks, each counting the same.
        whole: policy: the row of `eepolicy.analysis.evaluation.run.table` over all questions.
        scored: what the scores are.
    """

    rows: tuple[Row, ...]
    tasks: tuple[str, ...]
    scores: dict[str, dict[str, tuple[float, float, float]]]
    means: dict[str, tuple[float, float, float]]
    whole: dict[str, dict[str, Any]]
    scored: str

    def table(self) -> str:
        """Markdown: ours with 95 % intervals, the paper's in brackets behind."""
        headings = [
            "row",
            "policy",
            *(f"{task}, %" for task in self.tasks),
            "mean, %",
            "MOS",
            "WER, %",
            "text depth",
            "speech depth",
            "layer calls",
            "seconds",
        ]
        lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
        for row in self.rows:
            theirs = [row.scores[TASKS.index(task)] for task in self.tasks]
            ours = [self.scores[task][row.policy] for task in self.tasks]
            whole = self.whole[row.policy]
            cells = [row.label, f"`{row.policy}`"]
            # ours is the mean of the tasks that have a score, and so is the paper's beside it
            scored = [t for t, own in zip(theirs, ours, strict=True) if not math.isnan(own[0])]
            mean = sum(scored) / len(scored) if scored else math.nan
            pairs = zip([*ours, self.means[row.policy]], [*theirs, mean], strict=True)
            cells += [f"{_interval(own)} ({paper:.2f})" for own, paper in pairs]
            for name, scale, digits, paper in (
                ("mos", 1.0, 2, row.mos),
                ("wer", 100.0, 1, row.wer),
                ("text_depth", 1.0, 2, row.text_depth),
                ("speech_depth", 1.0, 2, row.speech_depth),
            ):
                value = whole[name]
                own = "–" if value is None else f"{scale * value:.{digits}f}"
                cells.append(f"{own} ({paper:g})")
            cells += [f"{whole['layer_calls']:.0f}", f"{whole['seconds']:.2f}"]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines) + f"\n\nIn brackets: the paper's figures. Scores: {self.scored}.\n"


def _interval(own: tuple[float, float, float]) -> str:
    value, low, high = (100 * x for x in own)
    return "–" if math.isnan(value) else f"{value:.1f} [{low:.1f}, {high:.1f}]"


def table2(
    rows: tuple[Row, ...], questions: Sequence[Mapping[str, Any]], folder: RunFolder
) -> Table2:
    """The paper's table from a run of its policies.

    A judge's verdicts are the scores where there was one; the alias match on the transcript of the
    speech otherwise, or on the text where nothing was heard.

    Args:
        rows: of the paper.
        questions: of all tasks, from `eepolicy.analysis.evaluation.tasks.read_task`.
        folder: of the run.

    Raises:
        EepolicyError: a task of which no question has been answered by every policy.
    """
    policies = [row.policy for row in rows]
    tasks = tuple(t for t in TASKS if any(q["task"] == t for q in questions))
    kept = answered(policies, questions, folder)
    every = [r for each in kept.values() for replies in each for r in replies]
    judged = any(r.judged is not None for r in every)
    heard = any(r.heard is not None for r in every)
    name = "judged" if judged else "right_speech" if heard else "right_text"
    scored = {
        "judged": f"the judge's, on what was {'heard' if heard else 'written'} (AlpacaEval: its "
        "rating from 1 to 10, times ten)",
        "right_speech": "an alias of the right answer occurs in what was heard",
        "right_text": "an alias of the right answer occurs in the text, as nothing was heard",
    }[name]
    values: dict[str, dict[str, NDArray[np.float64]]] = {}
    for task in tasks:
        asked = [
            kept[q["question"]] for q in questions if q["task"] == task and q["question"] in kept
        ]
        if not asked:
            raise EepolicyError(f"no question of {task} has been answered by every policy yet")
        values[task] = {
            policy: np.array([_score(replies[i], name) for replies in asked])
            for i, policy in enumerate(policies)
        }
    return Table2(
        rows,
        tasks,
        {t: {p: _mean([v]) for p, v in by.items()} for t, by in values.items()},
        {p: _mean([values[t][p] for t in tasks]) for p in policies},
        {r["policy"]: r for r in table(policies, questions, folder)},
        scored,
    )


def _score(replies: Sequence[Record], name: str) -> float:
    found = [getattr(r, name) for r in replies]
    known = [float(x) for x in found if x is not None]
    return sum(known) / len(known) if known else math.nan


def _mean(tasks: Sequence[NDArray[np.float64]]) -> tuple[float, float, float]:
    """The mean of the tasks' means, and its 95 % interval by resampling each task's questions."""
    rng = np.random.default_rng(0)
    held = [v[~np.isnan(v)] for v in tasks]
    held = [v for v in held if len(v)]
    if not held:
        return math.nan, math.nan, math.nan
    drawn = [rng.choice(v, (RESAMPLES, len(v))).mean(1) for v in held]
    low, high = np.percentile(np.mean(drawn, 0), [2.5, 97.5])
    return float(np.mean([v.mean() for v in held])), float(low), float(high)
