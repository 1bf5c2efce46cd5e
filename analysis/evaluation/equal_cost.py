"""Rows of a comparison against the static exit of nearly the same cost."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from eepolicy.analysis.evaluation.columns import COLUMNS, Column
from eepolicy.analysis.evaluation.default_policies import FULL
from eepolicy.analysis.evaluation.estimates import ColumnSums
from eepolicy.analysis.evaluation.leaderboard_runs import CALLS
from eepolicy.analysis.evaluation.table import Comparison
from eepolicy.analysis.stats.bootstrap import Interval, paired_difference, ratio
from eepolicy.analysis.tables import markdown_code, markdown_table, number, with_interval
from eepolicy.errors import EepolicyError

#: names of the columns that are compared
QUALITIES = ("wer", "accuracy_speech")
_STATIC = re.compile(r"static@\d+")


@dataclass(frozen=True, eq=False)
class EqualCost:
    """A row against a static exit, on the same questions.

    Attributes:
        policy: spec string of the row.
        exit: spec string of the static exit with the nearest layer calls a token.
        calls: layer calls a token of the row.
        cost: its layer calls a token minus those of the static exit.
        differences: by name of a column: the row minus the static exit; nan where nothing was
            measured.
    """

    policy: str
    exit: str
    calls: Interval[float] = field(repr=False)
    cost: Interval[float] = field(repr=False)
    differences: dict[str, Interval[float]] = field(repr=False)


def at_equal_cost(comparison: Comparison, qualities: Sequence[str] = QUALITIES) -> list[EqualCost]:
    """Compare each row with the static exit whose layer calls a token are nearest.

    A policy that chooses depths by position should beat one depth for all positions at the same
    cost.  The difference from full depth does not show this.  Full depth counts as the static exit
    at the last layer.  Differences are paired by question, with 95 % intervals over questions, each
    for one row alone.

    Args:
        comparison: comparison with rows `static@DEPTH`.
        qualities: names of the columns that are compared.

    Returns:
        One result for each row that is no static exit, in the order of the rows.

    Raises:
        EepolicyError: there is no row `static@DEPTH`, or no question that every row has answered.
    """
    exits = [i for i, policy in enumerate(comparison.policies) if _is_static(policy)]
    if len(exits) < 2:
        raise EepolicyError(
            f"{comparison.folder.path} has no row static@DEPTH: compare rows such as static@16 too"
        )
    columns = (CALLS, *(_column(name) for name in qualities))
    sums = ColumnSums.of(columns, list(comparison.answered().values()))
    calls = [ratio(*sums.of_policy(CALLS.name, i)) for i in range(len(comparison.policies))]
    results = []
    for own, policy in enumerate(comparison.policies):
        if own in exits:
            continue
        near = min(exits, key=lambda i: abs(calls[i].value - calls[own].value))
        differences = {c.name: _difference(sums, c.name, own, near) for c in columns}
        cost = differences.pop(CALLS.name)
        results.append(EqualCost(policy, comparison.policies[near], calls[own], cost, differences))
    return results


def equal_cost_table(results: Sequence[EqualCost]) -> str:
    """Format results as Markdown, a row each."""
    columns = [_column(name) for name in results[0].differences]
    rows = []
    for result in results:
        cells = [
            with_interval(each.value, (each.low, each.high), column.digits, column.scale, sign=True)
            for column, each in zip(columns, result.differences.values(), strict=True)
        ]
        calls, cost = number(result.calls.value), number(result.cost.value, sign=True)
        rows.append([markdown_code(result.policy), calls, markdown_code(result.exit), cost, *cells])
    differences = [f"{column.heading.removesuffix(', %')}, points" for column in columns]
    headings = ["row", CALLS.heading, "static exit", "layer calls more", *differences]
    return markdown_table(headings, rows)


def _column(name: str) -> Column:
    return next(column for column in COLUMNS if column.name == name)


def _is_static(policy: str) -> bool:
    return policy == FULL or _STATIC.fullmatch(policy) is not None


def _difference(sums: ColumnSums, name: str, own: int, other: int) -> Interval[float]:
    """The paired difference of two rows in a column, on the questions that count for both."""
    (top, bottom), (other_top, other_bottom) = (sums.of_policy(name, i) for i in (own, other))
    both = (bottom > 0) & (other_bottom > 0)
    return paired_difference(
        (np.where(both, top, 0), np.where(both, other_top, 0)),
        (np.where(both, bottom, 0), np.where(both, other_bottom, 0)),
    )
