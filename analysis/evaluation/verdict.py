"""Verdicts: whether a policy is worse than full depth by more than a margin, and what it saves.

The quality that decides is the first measured one of WER and accuracy in text.  `docs/verdicts.md`
explains the test and its error rates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias

import numpy as np

from eepolicy.analysis.evaluation.columns import Column
from eepolicy.analysis.evaluation.estimates import ColumnSums
from eepolicy.analysis.stats.bootstrap import Floats, influences
from eepolicy.analysis.stats.noninferiority import MarginTest, margin_test
from eepolicy.analysis.stats.sequential import UntilDecided
from eepolicy.analysis.stats.tests import holm
from eepolicy.errors import EepolicyError

#: numerators and denominators, (prompts,) each
Sums: TypeAlias = tuple[Floats, Floats]
Status: TypeAlias = Literal["baseline", "not worse", "worse", "undecided"]

#: level of the verdicts of all rows together
LEVEL = 0.05
#: numbers of further questions above this one are not given, because they are guesses
MOST_QUESTIONS = 10_000


@dataclass(frozen=True)
class Margins:
    """Largest losses against full depth that count as not worse.

    Attributes:
        wer: increase of the word error rate, in points.
        accuracy: decrease of the share of right answers, in points.
        mos: decrease of the predicted mean opinion score.

    Raises:
        EepolicyError: a margin is not above 0, or is larger than its scale.

    Example:
        >>> Margins(wer=1.0)
        Margins(wer=1.0, accuracy=5.0, mos=0.1)
    """

    wer: float = 2.0
    accuracy: float = 5.0
    mos: float = 0.1

    def __post_init__(self) -> None:
        for margin, most in zip(fields(self), (100, 100, 4), strict=True):
            value = getattr(self, margin.name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 < value <= most:
                raise EepolicyError(
                    f"the margin of {margin.name} is a number above 0 and at most {most}; "
                    f"got {value!r}"
                )


@dataclass(frozen=True)
class Quality:
    """A quality that verdicts judge.

    Attributes:
        column: name of its column.
        name: its name in sentences.
        margin: name of its margin in `Margins`.
    """

    column: str
    name: str
    margin: Literal["wer", "accuracy", "mos"]

    def limit(self, margins: Margins) -> str:
        """The margin with its unit, such as "2 points"."""
        value: float = getattr(margins, self.margin)
        if self.margin == "mos":
            return f"{value:g}"
        return f"{value:g} point" + ("" if value == 1 else "s")


#: qualities of which the first measured one decides
DECIDING = (
    Quality("wer", "WER", "wer"),
    Quality("accuracy_text", "accuracy in text", "accuracy"),
)
#: qualities with words of their own beside WER
FURTHER = (Quality("accuracy_speech", "accuracy", "accuracy"), Quality("mos", "MOS", "mos"))


@dataclass(frozen=True)
class Decision:
    """What is known about one quality of one policy.

    Attributes:
        status: whether it is worse than full depth by more than the margin.
        p: p-value of the status, adjusted for all rows and, if questions were added until rows
            were decided, for all looks.  Of an undecided row: the smaller one of both directions.
        upper: upper end of the one-sided 95 % interval of the loss, in the unit of the column.
        needed: number of further questions that probably decide for "not worse"; inf if the
            observed loss is at or over the margin.  None if the row is decided or was not tested.
    """

    status: Status
    p: float | None = None
    upper: float | None = None
    needed: float | None = None


@dataclass(frozen=True)
class Verdict:
    """The verdict on one policy.

    Attributes:
        status: the decision on the deciding quality; "undecided" if none was measured.
        sentence: what the policy saves, and how its qualities compare.
        p: adjusted p-value of the deciding quality.
        upper: upper end of the one-sided 95 % interval of the deciding quality's loss.
        needed: number of further questions; None if it is unknown or more than `MOST_QUESTIONS`.
        decisions: by name of the column: the decisions on all qualities.
    """

    status: Status
    sentence: str
    p: float | None
    upper: float | None
    needed: int | None
    decisions: Mapping[str, Decision]


@dataclass(frozen=True)
class Rules:
    """How verdicts are reached.

    Attributes:
        margins: largest losses that count as not worse.
        looks: the rule if questions are added until rows are decided; None if their number was
            stated before.
    """

    margins: Margins = field(default_factory=Margins)
    looks: UntilDecided | None = None

    @property
    def level(self) -> float:
        """Level of all rows and looks together."""
        return LEVEL if self.looks is None else self.looks.level


def verdicts(
    rows: Sequence[Mapping[str, Any]],
    sums: ColumnSums,
    rules: Rules,
) -> list[Verdict]:
    """Reach a verdict on every row.

    Args:
        rows: rows of `Comparison.table`, the baseline first.
        sums: sums of each row, in the order of the questions.
        rules: margins and looks.
    """
    known = {}
    for column in sums.columns:
        for quality in (*DECIDING, *FURTHER):
            if quality.column == column.name:
                each = [sums.of_policy(column.name, i) for i in range(len(rows))]
                if _measured(each):
                    known[quality] = decide(each, column, quality, rules)
    deciding = next((quality for quality in DECIDING if quality in known), None)
    shown = [deciding] if deciding else []
    if deciding in known and deciding != DECIDING[1]:
        shown += [quality for quality in FURTHER if quality in known]
    results = []
    for i, row in enumerate(rows):
        decisions = {q.column: known[q][i] for q in known}
        main = decisions[deciding.column] if deciding else Decision("undecided")
        if i == 0:
            main = Decision("baseline")
        needed = main.needed if main.needed is not None else math.inf
        results.append(
            Verdict(
                status=main.status,
                sentence=_sentence(rows[0], row, [(q, known[q][i]) for q in shown], rules)
                if i > 0
                else "full depth, the baseline",
                p=main.p,
                upper=main.upper,
                needed=int(needed) if needed <= MOST_QUESTIONS else None,
                decisions=decisions,
            )
        )
    return results


def _measured(sums: Sequence[Sums]) -> bool:
    """Whether the baseline and another row have values of a quality."""
    return bool((sums[0][1] > 0).any() and any((own[1] > 0).any() for own in sums[1:]))


def decide(sums: Sequence[Sums], column: Column, quality: Quality, rules: Rules) -> list[Decision]:
    """Decide on one quality of all rows.

    Args:
        sums: sums of each row, the baseline first, in the order of the questions.
        column: column of the quality.
        quality: the quality.
        rules: margins and looks.

    Returns:
        A decision per row; "undecided" where nothing was measured.
    """
    margin = getattr(rules.margins, quality.margin) / column.scale
    questions = len(sums[0][0])
    looks = (questions,) if rules.looks is None else rules.looks.passed(questions)
    last = [_test(own, sums[0], questions, column, margin) for own in sums[1:]]
    tested = [i for i, test in enumerate(last) if test is not None]
    p = np.full((len(last), 2), np.nan)  # not worse, worse
    for i in tested if looks else ():
        tests = [_test(sums[i + 1], sums[0], look, column, margin) for look in looks]
        of_looks = np.array([0.5 if test is None else test.p for test in tests])
        for j, values in enumerate((of_looks, 1 - of_looks)):
            p[i, j] = values[0] if rules.looks is None else rules.looks.corrected(values)
    adjusted = np.full(len(last), np.nan)
    adjusted[tested] = holm(p[tested].min(1))
    undecided = int((adjusted > rules.level).sum())
    decisions = [Decision("baseline")]
    for i, test in enumerate(last):
        if test is None:
            decisions.append(Decision("undecided"))
            continue
        upper = float(test.upper(LEVEL))
        if not looks:
            decisions.append(Decision("undecided", upper=upper))
        elif adjusted[i] <= rules.level:
            status: Status = "not worse" if p[i, 0] < p[i, 1] else "worse"
            decisions.append(Decision(status, float(adjusted[i]), upper))
        else:
            needed = test.more_questions(rules.level / undecided)
            decisions.append(Decision("undecided", float(adjusted[i]), upper, needed))
    return decisions


def _test(
    own: Sums, full: Sums, questions: int, column: Column, margin: float
) -> MarginTest | None:
    """Test one row on the first questions.

    Returns:
        None if fewer than two questions have both values, or if a value is missing whose worst case
        is not known.
    """
    (top, bottom), (top0, bottom0) = ((x[:questions] for x in sums) for sums in (own, full))
    # a reply without text where full depth has one: all its words are wrong
    lost = (bottom == 0) & (bottom0 > 0)
    if lost.any() and column.better != "lower":
        return None
    top, bottom = np.where(lost, bottom0, top), np.where(lost, bottom0, bottom)
    both = (bottom > 0) & (bottom0 > 0)
    if both.sum() < 2:
        return None
    difference = influences(top[both], bottom[both]) - influences(top0[both], bottom0[both])
    losses = difference if column.better == "lower" else -difference
    return margin_test(losses, margin, unit=float(1 / bottom0[both].mean()))


def _sentence(
    full: Mapping[str, Any],
    row: Mapping[str, Any],
    decisions: Sequence[tuple[Quality, Decision]],
    rules: Rules,
) -> str:
    parts = [savings(full, row)]
    for i, (quality, decision) in enumerate(decisions):
        than = " than full depth" if i == 0 else ""
        if decision.status == "undecided":
            parts.append(f"{quality.name} undecided" + (_outlook(decision, rules) * (i == 0)))
        else:
            p = f" (p {p_value(decision.p)})" if i == 0 and decision.p is not None else ""
            limit = quality.limit(rules.margins)
            parts.append(f"{quality.name} {decision.status}{than} by more than {limit}{p}")
    if not decisions:
        parts.append("quality not measured")
    return "; ".join(part for part in parts if part)


def _outlook(decision: Decision, rules: Rules) -> str:
    """How many more questions an undecided row needs, in words."""
    if decision.needed is None:
        first = rules.looks.looks[0] if rules.looks and decision.upper is not None else None
        if first is None:
            return ": too few replies have a value"
        return f": the first test is at {first} questions"
    if math.isinf(decision.needed):
        return ": the difference is at or over the margin"
    if decision.needed > MOST_QUESTIONS:
        return ": the difference is close to the margin"
    more = rounded_up(decision.needed)
    return f": about {more:,} more question" + ("" if more == 1 else "s")


def rounded_up(number: float) -> int:
    """Round a count up to two digits.

    Example:
        >>> rounded_up(7), rounded_up(171), rounded_up(1204)
        (7, 180, 1300)
    """
    unit = int(10 ** max(0, len(str(math.ceil(number))) - 2))
    return math.ceil(number / unit) * unit


def p_value(p: float) -> str:
    """A p-value with its sign.

    Example:
        >>> p_value(0.0042), p_value(0.00001), p_value(0.043)
        ('= 0.004', '< 0.001', '= 0.043')
    """
    return f"= {p:.3f}" if p >= 0.0005 else "< 0.001"


def savings(full: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """What a policy saves or costs against full depth, in words; empty if nothing was measured.

    Args:
        full: row of the baseline.
        row: row of the policy.

    Example:
        >>> row = {"layer_calls": 84.0, "speedup": 1.1, "speedup_low": 1.05, "speedup_high": 1.2}
        >>> savings({"layer_calls": 100.0}, row)
        'saves 16 % of layer calls and 9 % of the time'
    """
    calls, time = None, None
    if full.get("layer_calls") and row.get("layer_calls") is not None:
        calls = round(100 * (1 - row["layer_calls"] / full["layer_calls"]))
    if row.get("speedup") is not None:
        time = round(100 * (1 - 1 / row["speedup"]))
        if row["speedup_low"] <= 1 <= row["speedup_high"]:
            time = 0  # not different from no saving
    if not calls:
        first = "" if calls is None else "runs as many layer calls as full depth"
    elif calls > 0:
        first = f"saves {calls} % of layer calls"
    else:
        first = f"costs {-calls} % more layer calls"
    if time is None:
        return first
    if not time:
        second = "no measurable difference in time"
        return f"{first}, {second}" if first else second
    second = f"{time} % of the time" if time > 0 else f"{-time} % more time"
    verb = "saves" if time > 0 else "costs"
    if not first:
        return f"{verb} {second}"
    same = calls and (calls > 0) == (time > 0)
    return f"{first} and {second}" if same else f"{first} but {verb} {second}"
