"""Estimates, differences and tests of all policies and columns of a comparison at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eepolicy.analysis.evaluation.columns import Column
from eepolicy.analysis.evaluation.records import Record
from eepolicy.analysis.stats.bootstrap import (
    Floats,
    Intervals,
    influences,
    mean_differences,
    mean_quotients,
    means,
)
from eepolicy.analysis.stats.tests import prompts_needed, sign_flip

#: resamples of the sign-flip test
RESAMPLES = 9999


@dataclass(frozen=True, eq=False)
class ColumnSums:
    """Sums of all columns over the seeds of each prompt, for each policy.

    Attributes:
        columns: columns of the comparison.
        tops: (prompts, policies, columns) numerators; the first policy is full depth.
        bottoms: (prompts, policies, columns) denominators; 0 where nothing was measured.
    """

    columns: tuple[Column, ...]
    tops: Floats = field(repr=False)
    bottoms: Floats = field(repr=False)

    @classmethod
    def of(
        cls, columns: Sequence[Column], replies: Sequence[Sequence[Sequence[Record]]]
    ) -> ColumnSums:
        """Sum up the records.

        Args:
            columns: columns of the comparison.
            replies: by prompt and policy: a record per seed.
        """
        by_policy = list(zip(*replies, strict=True))
        sums = np.array([[c.sums(records) for c in columns] for records in by_policy])
        tops, bottoms = sums.transpose(2, 3, 0, 1)  # from (policies, columns, 2, prompts)
        return cls(tuple(columns), tops, bottoms)

    def of_policy(self, name: str, policy: int) -> tuple[Floats, Floats]:
        """Numerators and denominators of one policy in one column: (prompts,) each."""
        column = [c.name for c in self.columns].index(name)
        return self.tops[:, policy, column], self.bottoms[:, policy, column]

    def cells(self) -> list[dict[str, float | None]]:
        """By policy: the values of all columns, see `Comparison.table`."""
        tops, bottoms = self.tops, self.bottoms
        tops = np.where(bottoms > 0, tops, 0.0)
        both = (bottoms > 0) & (bottoms[:, :1] > 0)  # prompts that count for both
        own = tops * both, bottoms * both
        full = tops[:, :1] * both, bottoms[:, :1] * both
        estimates, differences, quotients = (
            means(tops, bottoms),
            mean_differences(own, full),
            mean_quotients(full, own),
        )
        flips = self._differences(both)
        p = sign_flip(flips, resamples=RESAMPLES)  # (policies, columns)
        rows = []
        for i in range(tops.shape[1]):
            row: dict[str, float | None] = {}
            for j, column in enumerate(self.columns):
                name, no_test = column.name, i == 0 or column.relative or not both[:, i, j].any()
                row |= _interval(name, (quotients if column.relative else estimates)[i, j])
                difference = _interval(f"{name}_diff", differences[i, j])
                row |= dict.fromkeys(difference) if column.relative else difference
                row[f"{name}_p"] = None if no_test else float(p[i, j])
                needed = np.nan if no_test else prompts_needed(flips[both[:, i, j], i, j])
                row[f"{name}_needed"] = needed if np.isfinite(needed) else None
            rows.append(row)
        return rows

    def _differences(self, both: Any) -> Floats:
        """Differences of the influences, (prompts, policies, columns); 0 where one is missing."""
        differences = np.zeros(self.tops.shape)
        for i, j in np.ndindex(*self.tops.shape[1:]):
            known = both[:, i, j]
            if not known.any():
                continue
            own, full = (
                influences(self.tops[known, k, j], self.bottoms[known, k, j]) for k in (i, 0)
            )
            differences[known, i, j] = own - full
        return differences


def _interval(name: str, interval: Intervals) -> dict[str, float | None]:
    bounds = {"": interval.value, "_low": interval.low, "_high": interval.high}
    return {name + end: float(x) if np.isfinite(x) else None for end, x in bounds.items()}
