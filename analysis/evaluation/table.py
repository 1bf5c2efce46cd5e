"""The table of a comparison: estimates with intervals and paired differences from full depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eepolicy.analysis.evaluation.columns import COLUMNS, Column, check_columns
from eepolicy.analysis.evaluation.records import Record, RunFolder
from eepolicy.analysis.stats.bootstrap import Interval, paired_difference, ratio
from eepolicy.analysis.stats.clustered import as_columns
from eepolicy.analysis.stats.tests import prompts_needed, sign_flip
from eepolicy.errors import EepolicyError

Floats = NDArray[np.float64]
#: numerators and denominators, (prompts,) each
Sums = tuple[Floats, Floats]

#: resamples of the sign-flip test
RESAMPLES = 9999


@dataclass(frozen=True)
class Comparison:
    """Policies, questions and the folder with their records.

    Attributes:
        policies: spec strings of the rows; the first is the baseline, full depth.
        questions: dicts with `question`, see `eepolicy.analysis.evaluation.run.run`.
        folder: folder of the run.
        columns: columns of the table; append a `Column` to add one.

    Raises:
        EepolicyError: two columns have the same name or heading.
    """

    policies: tuple[str, ...]
    questions: tuple[Mapping[str, Any], ...] = field(repr=False)
    folder: RunFolder
    columns: tuple[Column, ...] = field(default=COLUMNS, repr=False)

    def __post_init__(self) -> None:
        check_columns(self.columns)

    def answered(self) -> dict[str, list[list[Record]]]:
        """Collect the records of the questions that every policy has answered.

        Only the seeds that all policies have for all these questions are used, so that every
        question has the same weight.

        Returns:
            By question: a list per policy with a record per seed.

        Raises:
            EepolicyError: there is no such question.
        """
        stored = self.folder.records()
        by_question: dict[str, list[dict[int, Record]]] = {}
        for question in (q["question"] for q in self.questions):
            by_seed = [
                {record.seed: record for record in stored.get((question, policy), [])}
                for policy in self.policies
            ]
            if set.intersection(*map(set, by_seed)):
                by_question[question] = by_seed
        each = [set(by_seed) for policies in by_question.values() for by_seed in policies]
        seeds = sorted(set.intersection(*each)) if each else []
        if not seeds:
            raise EepolicyError(
                f"{self.folder.path} contains no question that every policy has answered yet"
            )
        return {
            question: [[by_seed[seed] for seed in seeds] for by_seed in policies]
            for question, policies in by_question.items()
        }

    def table(self) -> list[dict[str, Any]]:
        """Compute a row per policy.

        Returns:
            Dicts with `policy`, `prompts`, `seeds`, and for each column `x`: the estimate `x`, its
            interval `x_low`, `x_high`, the difference from full depth `x_diff`, `x_diff_low`,
            `x_diff_high`, the p-value `x_p` of a paired sign-flip test, and `x_needed`, the
            number of prompts that detects the observed difference with 80 % power.  None where
            nothing was measured.

        Raises:
            EepolicyError: no question has been answered by every policy.
        """
        answered = list(self.answered().values())
        baseline = [replies[0] for replies in answered]
        rows = []
        for i, policy in enumerate(self.policies):
            records = [replies[i] for replies in answered]
            row: dict[str, Any] = {
                "policy": policy,
                "prompts": len(records),
                "seeds": len(records[0]),
            }
            for column in self.columns:
                own, full = column.sums(records), column.sums(baseline)
                row |= _cells(column.name, own, full, is_baseline=i == 0)
            rows.append(row)
        return rows


def _cells(name: str, own: Sums, full: Sums, is_baseline: bool) -> dict[str, float | None]:
    """Estimate, difference and test of one policy in one column."""
    (top, bottom), (top0, bottom0) = own, full
    both = (bottom > 0) & (bottom0 > 0)  # the difference uses prompts that count for both
    difference = paired_difference((top * both, top0 * both), (bottom * both, bottom0 * both))
    p, needed = (None, None) if is_baseline else _test(own, full)
    return (
        _finite(name, ratio(top, bottom))
        | _finite(f"{name}_diff", difference)
        | {f"{name}_p": p, f"{name}_needed": needed}
    )


def _finite(name: str, interval: Interval[float]) -> dict[str, float | None]:
    return {k: v if np.isfinite(v) else None for k, v in as_columns({name: interval}).items()}


def influences(top: Floats, bottom: Floats) -> Floats:
    """Compute each prompt's first-order influence on a ratio of sums.

    The mean of the influences is the ratio.  For means, the influences are the values themselves.

    Args:
        top: (prompts,) numerators.
        bottom: (prompts,) denominators; a prompt with 0 does not count.

    Returns:
        (prompts,) influences; NaN for a prompt that does not count.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        value = top.sum() / bottom.sum()
        influence = value + (top - value * bottom) / bottom[bottom > 0].mean()
    return np.where(bottom > 0, influence, np.nan)


def _test(own: Sums, full: Sums) -> tuple[float | None, float | None]:
    """P-value of a paired sign-flip test, and the number of prompts for 80 % power."""
    both = (own[1] > 0) & (full[1] > 0)
    if not both.any():
        return None, None
    difference = influences(*(x[both] for x in own)) - influences(*(x[both] for x in full))
    needed = prompts_needed(difference)
    p = float(sign_flip(difference, resamples=RESAMPLES))
    return p, needed if np.isfinite(needed) else None


def shown_columns(
    results: Sequence[Mapping[str, Any]], columns: Sequence[Column] = COLUMNS
) -> list[Column]:
    """List the columns to show: all but optional ones without a measurement.

    Args:
        results: rows of `Comparison.table`.
        columns: columns of the comparison.
    """
    return [c for c in columns if not c.optional or is_measured(results, c)]


def is_measured(results: Sequence[Mapping[str, Any]], column: Column) -> bool:
    """Check whether any row has a value in a column."""
    return any(row.get(column.name) is not None for row in results)
