"""The sixteen rows of Table 2 of SPAR-K (arXiv 2603.09215), measured here and as published."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eepolicy.analysis.evaluation.columns import COLUMNS
from eepolicy.analysis.evaluation.llm_judge import unscored
from eepolicy.analysis.evaluation.records import Record
from eepolicy.analysis.evaluation.table import Comparison
from eepolicy.analysis.tables import markdown_table, number, with_interval
from eepolicy.errors import EepolicyError
from eepolicy.hooked import HookedModel
from eepolicy.io import write_text
from eepolicy.modality import Modality
from eepolicy.policies import Step, parse_policy

#: bootstrap resamples
RESAMPLES = 2000
#: tasks in the order of the paper
TASKS = ("alpacaeval", "llamaquestions", "triviaqa", "webquestions")


@dataclass(frozen=True)
class Row:
    """One row of the paper.

    Attributes:
        label: label in the paper.
        policy: spec string of the same policy.
        scores: scores of the four tasks in percent.
        mos: UTMOSv2 score.
        wer: word error rate of the transcript against the model's own text, in percent.
        text_depth: mean depth of text tokens.
        speech_depth: mean depth of speech tokens, as printed.
    """

    label: str
    policy: str
    scores: tuple[float, float, float, float]
    mos: float
    wer: float
    text_depth: float
    speech_depth: float


#: rows by model card.  The paper does not say how Fixed fills missing keys and values; here text
#: tokens, which always run all layers, catch up
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

#: columns with a value in the paper; fields of `Row`
COMPARED = ("mos", "wer", "text_depth", "speech_depth")
#: columns without one
MEASURED_ONLY = ("layer_calls", "seconds")

#: what the scores are, by field of a record
SCORES = {
    "judge_score": "the judge's, of the {source} (AlpacaEval: its rating from 1 to 10, times ten)",
    "right_speech": "an alias of the right answer occurs in the transcript",
    "right_text": "an alias of the right answer occurs in the text, as there are no transcripts",
}


def rows_of(model: HookedModel) -> tuple[Row, ...]:
    """Look up the paper's rows of a model.

    Raises:
        EepolicyError: the paper does not evaluate this model.
    """
    name = model.card.name if model.card else None
    if name not in ROWS:
        raise EepolicyError(
            f"the paper's Table 2 has rows of {' and '.join(ROWS)}; this model is "
            f"{name or 'neither'}"
        )
    return ROWS[name]


def head_depths(rows: Sequence[Row]) -> tuple[int, ...]:
    """List the depths below full at which the rows read out, and which therefore need heads."""
    full, phase = int(rows[0].speech_depth), torch.arange(6)
    depths: set[int] = set()
    for row in rows:
        policy = parse_policy(row.policy)
        for modality in Modality:
            step = Step(torch.full_like(phase, modality), phase, phase, phase, phase, full)
            depths |= {*policy.depths(step).tolist(), *policy.candidate_depths(step)}
    return tuple(sorted(depths - {full}))


@dataclass(frozen=True, eq=False)
class Table2:
    """The measured rows beside the paper's.

    Attributes:
        rows: rows of the paper.
        tasks: measured tasks, from `TASKS`.
        scores: by task and policy: share with its 95 % interval (value, low, high).
        means: by policy: mean over the tasks with equal weights (value, low, high).
        whole: by policy: row of `Comparison.table` over all questions.
        score_note: what the scores are.
    """

    rows: tuple[Row, ...]
    tasks: tuple[str, ...]
    scores: dict[str, dict[str, tuple[float, float, float]]]
    means: dict[str, tuple[float, float, float]]
    whole: dict[str, dict[str, Any]]
    score_note: str

    def table(self) -> str:
        """Format as Markdown: measured values with 95 % intervals, the paper's in brackets."""
        headings = [
            "row",
            "policy",
            *(f"{task}, %" for task in self.tasks),
            "mean, %",
            *(c.heading for c in COLUMNS if c.name in COMPARED + MEASURED_ONLY),
        ]
        rows = markdown_table(headings, [self._cells(row) for row in self.rows])
        return f"{rows}\n\nIn brackets: the paper's values. Scores: {self.score_note}.\n"

    def _cells(self, row: Row) -> list[str]:
        paper = [row.scores[TASKS.index(task)] for task in self.tasks]
        ours = [self.scores[task][row.policy] for task in self.tasks]
        # the paper's mean is over the same tasks as ours
        scored = [p for p, own in zip(paper, ours, strict=True) if not math.isnan(own[0])]
        mean = sum(scored) / len(scored) if scored else math.nan
        pairs = zip([*ours, self.means[row.policy]], [*paper, mean], strict=True)
        cells = [row.label, f"`{row.policy}`"]
        cells += [f"{with_interval(v, (lo, hi), 1, 100)} ({p:.2f})" for (v, lo, hi), p in pairs]
        whole = self.whole[row.policy]
        for column in COLUMNS:
            value = number(whole[column.name], column.digits, column.scale)
            if column.name in COMPARED:
                cells.append(f"{value} ({getattr(row, column.name):g})")
            elif column.name in MEASURED_ONLY:
                cells.append(value)
        return cells


def table2(rows: tuple[Row, ...], comparison: Comparison) -> Table2:
    """Compute the paper's table from a run of its policies.

    The scores are the judge's if there was one.  Otherwise a score is the match of an alias in the
    transcript, or in the text if there are no transcripts.

    Args:
        rows: rows of the paper.
        comparison: run of their policies, with questions of `TASKS`.

    Raises:
        EepolicyError: no question of a task has been answered by every policy.
    """
    policies, questions = [row.policy for row in rows], comparison.questions
    comparison = Comparison(tuple(policies), questions, comparison.folder)
    tasks = tuple(t for t in TASKS if any(q["task"] == t for q in questions))
    answered = comparison.answered()
    name, note = _score_field(
        [r for policies in answered.values() for replies in policies for r in replies]
    )
    values: dict[str, dict[str, NDArray[np.float64]]] = {}
    for task in tasks:
        texts = [q["question"] for q in questions if q["task"] == task]
        replies = [answered[text] for text in texts if text in answered]
        if not replies:
            raise EepolicyError(f"no question of {task} has been answered by every policy yet")
        values[task] = {
            policy: np.array([_score(by_policy[i], name) for by_policy in replies])
            for i, policy in enumerate(policies)
        }
    return Table2(
        rows,
        tasks,
        {t: {p: _mean([v]) for p, v in by.items()} for t, by in values.items()},
        {p: _mean([values[t][p] for t in tasks]) for p in policies},
        {r["policy"]: r for r in comparison.table()},
        note,
    )


def _score_field(records: Sequence[Record]) -> tuple[str, str]:
    """Field of a record that has the score, and a note on it."""
    has_transcript = any(r.transcript is not None for r in records)
    if any(r.judge_score is not None for r in records):
        source = "transcripts" if has_transcript else "texts"
        note = SCORES["judge_score"].format(source=source)
        missing = unscored(records)
        return "judge_score", note + (f"; {missing} replies without a score" if missing else "")
    name = "right_speech" if has_transcript else "right_text"
    return name, SCORES[name]


def _score(replies: Sequence[Record], name: str) -> float:
    """Mean score over the seeds of a question; NaN without any."""
    scores = [getattr(reply, name) for reply in replies]
    known = [float(score) for score in scores if score is not None]
    return sum(known) / len(known) if known else math.nan


def _mean(tasks: Sequence[NDArray[np.float64]]) -> tuple[float, float, float]:
    """Mean of the tasks' means; its 95 % interval resamples the questions of each task."""
    rng = np.random.default_rng(0)
    known = [scores[~np.isnan(scores)] for scores in tasks]
    known = [scores for scores in known if len(scores)]
    if not known:
        return math.nan, math.nan, math.nan
    drawn = [rng.choice(scores, (RESAMPLES, len(scores))).mean(1) for scores in known]
    low, high = np.percentile(np.mean(drawn, 0), [2.5, 97.5])
    return float(np.mean([scores.mean() for scores in known])), float(low), float(high)


def write_table2(rows: tuple[Row, ...], comparison: Comparison) -> str:
    """Write the table into the run folder as `table2.md`, and return it.

    Args:
        rows: rows of the paper.
        comparison: run of their policies, with questions of `TASKS`.

    Raises:
        EepolicyError: no question of a task has been answered by every policy.
    """
    table = table2(rows, comparison).table()
    write_text(comparison.folder.path / "table2.md", table)
    return table


def rows_in(model: HookedModel, comparison: Comparison) -> tuple[Row, ...]:
    """The paper's rows of a model if a run has all of them and only the paper's tasks; else none.

    Args:
        model: model of the run.
        comparison: the run.
    """
    rows = ROWS.get(model.card.name if model.card else "", ())
    tasks = {question.get("task") for question in comparison.questions}
    has_rows = {row.policy for row in rows} <= {*comparison.policies}
    return rows if rows and has_rows and tasks <= {*TASKS} else ()
