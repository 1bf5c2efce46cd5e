"""The table of a comparison: estimates with intervals and paired differences from full depth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eepolicy.analysis.evaluation.columns import COLUMNS, Column, check_columns
from eepolicy.analysis.evaluation.estimates import ColumnSums
from eepolicy.analysis.evaluation.records import Record, RunFolder
from eepolicy.analysis.evaluation.results_files import short_table
from eepolicy.analysis.evaluation.verdict import Margins, Rules, Verdict, verdicts
from eepolicy.analysis.stats.sequential import UntilDecided
from eepolicy.errors import EepolicyError
from eepolicy.html import or_error, sortable_table


@dataclass(frozen=True)
class Comparison:
    """Policies, questions and the folder with their records.

    Attributes:
        policies: spec strings of the rows; the first is the baseline, full depth.
        questions: dicts with `question`, see `eepolicy.analysis.evaluation.run.run`.
        folder: folder of the run.
        columns: columns of the table; append a `Column` to add one.
        margins: largest losses against full depth that count as not worse.
        looks: the rule if questions are added until every row is decided; None if the number of
            questions was stated before.

    Raises:
        EepolicyError: two columns have the same name or heading.
    """

    policies: tuple[str, ...]
    questions: tuple[Mapping[str, Any], ...] = field(repr=False)
    folder: RunFolder
    columns: tuple[Column, ...] = field(default=COLUMNS, repr=False)
    margins: Margins = field(default_factory=Margins)
    looks: UntilDecided | None = None

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
            nothing was measured.  `verdict` is a sentence, `status` is `"baseline"`,
            `"not worse"`, `"worse"` or `"undecided"`, and `verdict_p`, `verdict_needed` and
            `wer_upper` belong to it, see `Verdict`.

        Raises:
            EepolicyError: no question has been answered by every policy.
        """
        rows, sums = self._rows()
        for row, verdict in zip(rows, self._verdicts(rows, sums), strict=True):
            wer = verdict.decisions.get("wer")
            row |= {
                "verdict": verdict.sentence,
                "status": verdict.status,
                "verdict_p": verdict.p,
                "verdict_needed": verdict.needed,
                "wer_upper": wer.upper if wer else None,
            }
        return rows

    def _repr_html_(self) -> str:
        """The short table in a notebook; a click on a heading sorts it."""

        def table() -> str:
            headings, *rows = short_table(self.table(), self.columns)
            return sortable_table(headings, rows)

        return or_error(table, "the table")

    def verdicts(self) -> list[Verdict]:
        """Reach a verdict on every policy, with the decisions on each quality.

        Raises:
            EepolicyError: no question has been answered by every policy.
        """
        return self._verdicts(*self._rows())

    def _verdicts(self, rows: list[dict[str, Any]], sums: ColumnSums) -> list[Verdict]:
        return verdicts(rows, sums, Rules(self.margins, self.looks))

    def _rows(self) -> tuple[list[dict[str, Any]], ColumnSums]:
        """Rows without verdicts, and the sums that they were computed from."""
        answered = list(self.answered().values())
        sums = ColumnSums.of(self.columns, answered)
        counts = {"prompts": len(answered), "seeds": len(answered[0][0])}
        rows: list[dict[str, Any]] = [
            {"policy": policy, **counts, **cells}
            for policy, cells in zip(self.policies, sums.cells(), strict=True)
        ]
        return rows, sums
