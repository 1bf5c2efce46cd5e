"""Policies made from what predicts a safe exit, against others of the same cost."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from eepolicy import HookedModel
from eepolicy.analysis.evaluation.metrics import Recognizer
from eepolicy.analysis.stats.bootstrap import (
    Floats,
    Interval,
    mean_differences,
    means,
)
from eepolicy.analysis.studies.base import BatchOptions, Measure, Workspace, progress_bar
from eepolicy.analysis.studies.policy_search import SCORES, PolicyEvaluator
from eepolicy.policies.unit_classes import Silence, Steady

#: how the questions are answered
OPTIONS = BatchOptions(size=60, max_new_tokens=400)
#: questions that all policies answer
QUESTIONS = 120
#: static exits that the others are compared with, as depths below full depth
STATIC = (2, 3)
#: columns of the table of policies
MEASURES = (
    Measure("calls", "layer calls a token"),
    Measure("wer", "WER", "%", digits=1),
    Measure("over_full", "over full depth", digits=1),
    Measure("over_static", "over a static exit of equal cost", digits=1),
    Measure("right", "right answers", "%", digits=1),
)


def policies_of_equal_cost(
    model: HookedModel, dev: pd.DataFrame, depth: int, file: Path
) -> list[str]:
    """Full depth, the two policies by classes of units, and others of about the same cost.

    Args:
        model: model with exit heads.
        dev: rows of `with_predictors` of replies to other questions than those of the comparison;
            they give the share of exits and a threshold.
        depth: exit depth.
        file: classes of the units.

    Returns:
        Spec strings: `full`, `steady`, `silence`, `static` near full depth, and `random`, `entropy`
        and a `spark` schedule with the cost of `steady`.
    """
    full = model.depth
    branch = len(model.branches.get(depth, ()))
    saved = full - depth - branch  # layer calls that an exit saves
    steady = float((dev.steady == 1).mean())
    mean_depth = full - steady * (full - depth)
    # a position that is read out and does not exit pays for the branch
    share = (saved * steady + branch) / (saved + branch)
    threshold = float(np.quantile(dev.entropy, share))
    cycle = max(2, round(1 / max(steady, 0.01)))
    return [
        "full",
        Steady(str(file), depth).spec,
        Silence(str(file), depth).spec,
        *(f"static@{full - less}" for less in STATIC),
        f"random:{mean_depth:.2f}@{depth}",
        f"entropy<{threshold:.3f}@{depth}",
        f"spark:{'F' * (cycle - 1)}E~@{depth}",
    ]


def score_policies(workspace: Workspace, policies: Sequence[str], asr: Recognizer) -> pd.DataFrame:
    """Answer the first `QUESTIONS` with each policy: one row for each policy and question.

    Its columns are `policy`, `question` (number), `wer` (at most 1), `right`, `calls` (layer
    calls) and `tokens`.
    """
    questions = workspace.questions[:QUESTIONS]
    evaluator = PolicyEvaluator(workspace.model, asr, options=OPTIONS)

    def measure(policy: str) -> pd.DataFrame:
        return evaluator.scores(policy, questions).assign(question=range(len(questions)))

    parts = []
    for policy in progress_bar("policies")(policies):
        label = label_of(policy)
        table = workspace.stored(f"safe-exits-policy-{label}", partial(measure, policy))
        parts.append(table.assign(policy=label))
    return pd.concat(parts, ignore_index=True)


def label_of(policy: str) -> str:
    """The spec string with `FILE` for the file of classes.

    Example:
        >>> label_of("steady:work/unit-classes.json@6")
        'steady:FILE@6'
    """
    names = "|".join(cls.name for cls in (Steady, Silence))
    return re.sub(rf"^({names}):[^@]+", r"\1:FILE", policy)


def compare_costs(scores: pd.DataFrame) -> dict[str, dict[str, Interval[Any]]]:
    """Cost and word errors of each policy, against full depth and a static exit of equal cost.

    The static exit of equal cost is a mixture of the two next static depths, full depth included.

    Args:
        scores: rows of `score_policies`.

    Returns:
        `MEASURES` by policy and name: `over_full` and `over_static` are differences of the WER in
        points; intervals over questions.
    """
    columns = scores.pivot(index="question", columns="policy").astype(float)
    wer, right, calls, tokens = (columns[name] for name in SCORES)
    cost = calls.sum() / tokens.sum()
    static = sorted(
        (float(cost[p]), str(p)) for p in cost.index if p == "full" or p.startswith("static@")
    )
    ones = np.ones(len(wer))
    table: dict[str, dict[str, Interval[Any]]] = {}
    full = wer["full"].to_numpy(), ones
    for policy in scores.policy.unique():
        own = wer[policy].to_numpy(), ones
        mixed = _mixture(wer, static, float(cost[policy])), ones
        table[policy] = {
            "calls": means(calls[policy].to_numpy(), tokens[policy].to_numpy()),
            "wer": means(*own).scaled(100),
            "right": means(right[policy].to_numpy(), ones).scaled(100),
            "over_full": mean_differences(own, full).scaled(100),
            "over_static": mean_differences(own, mixed).scaled(100),
        }
    return table


def _mixture(wer: pd.DataFrame, static: list[tuple[float, str]], cost: float) -> Floats:
    """WER of each question for the mixture of two static exits with a cost: (questions,)."""
    costs: NDArray[np.float64] = np.array([c for c, _ in static])
    upper = int(np.clip(np.searchsorted(costs, cost), 1, len(costs) - 1))
    (low, cheap), (high, deep) = static[upper - 1], static[upper]
    share = float(np.clip((cost - low) / (high - low), 0, 1))
    mixed: Floats = ((1 - share) * wer[cheap] + share * wer[deep]).to_numpy(float)
    return mixed
